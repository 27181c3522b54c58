"""Ends a command at any signal, with one line and within seconds.

SIGTERM and SIGHUP tell a command to leave (status 75), SIGINT (ctrl-C)
interrupts it (status 130). Then the process ends at once. A loop that can save
between two updates has some seconds to reach the next boundary between updates
(training/preemption.py).

A thread does this work. Python runs the handler of a signal in the main thread,
which cannot run it while it waits for a compiler, a device or a disk. Handlers
must not raise exceptions either: if a C++ library calls Python, as in many
imports, the exception is lost or crashes the process.

This file imports nothing slow, such as jax.
"""

import contextlib
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

STATUSES = {signal.SIGTERM: 75, signal.SIGHUP: 75, signal.SIGINT: 130}
# If the caller of the command ignores these signals, they stay ignored: nohup
# ignores SIGHUP, and a shell ignores SIGINT for background commands.
MAY_BE_IGNORED = (signal.SIGHUP, signal.SIGINT)
# The seconds that a loop has to reach its next boundary between updates: at
# least the first number, and up to the second if boundaries are far apart.
# `docker stop` kills after 10 s, and a spot machine is gone after 30 s.
SECONDS_TO_BOUNDARY = (9.0, 20.0)
# The seconds that a finished command has to exit: the first number is for one
# process, and the second for several processes, which wait for each other.
SECONDS_TO_EXIT = (5.0, 60.0)
# The seconds for removing unfinished files. A disk may not answer at all.
SECONDS_TO_CLEAN = 3.0
# Two interrupts within this many seconds are one ctrl-C, because both the
# terminal and a wrapper program may send it.
ONE_INTERRUPT = 0.5


class Listener:
  """Listens for signals and ends the process.

  Args:
    remedy: a text that says what a person can do after the command has ended.
  """

  def __init__(self, remedy: str):
    self.remedy = remedy
    self.process = ""
    self.first: int | None = None
    self.numbers = tuple(
      number
      for number in STATUSES
      if number not in MAY_BE_IGNORED
      or signal.getsignal(number) is not signal.SIG_IGN
    )
    self._status: int | None = None
    self._deadline = math.inf
    self._patience = 0.0
    self._boundary = 0.0
    self._writing = 0
    self._interrupts: list[float] = []
    self._ends = threading.Lock()
    self._unfinished: list[Callable[[], object]] = []
    self._terminals = [number for number in (1, 2) if os.isatty(number)]

  def start(self) -> None:
    """Starts to listen; only the main thread may call this."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    threading.Thread(
      target=self._watch, args=(read,), name="signals", daemon=True
    ).start()
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in self.numbers:
      signal.signal(number, self.note)

  def note(self, number: int, frame: FrameType | None = None) -> None:
    """Notes a signal; the first one decides how and when the process ends."""
    if self.first is None:
      self.first = number
      self._deadline = time.monotonic() + self._patience
    if number == signal.SIGHUP:
      self._hang_up()

  def boundary(self) -> None:
    """Notes that a loop is between two updates, where it can end."""
    now = time.monotonic()
    least, most = SECONDS_TO_BOUNDARY
    if self._boundary:
      least = min(max(least, 4 * (now - self._boundary)), most)
    self._boundary, self._patience = now, least

  def leave(self) -> None:
    """Notes that the loop saves and leaves; the process waits for this."""
    self._writing += 1

  @contextlib.contextmanager
  def writing(self) -> Iterator[None]:
    """Lets the main thread finish a write inside the `with`."""
    self._writing += 1
    try:
      yield
    finally:
      self._writing -= 1

  def at_end(self, act: Callable[[], object]) -> None:
    """Sets a function to call if a signal ends the process."""
    self._unfinished.append(act)

  @contextlib.contextmanager
  def unfinished(self, clean: Callable[[], object]) -> Iterator[None]:
    """Calls a clean-up function if the process ends inside the `with`."""
    self.at_end(clean)
    try:
      yield
    finally:
      self._unfinished.remove(clean)

  def over(self, status: int) -> None:
    """Notes that the command is done; later signals keep its status."""
    several = 1 if self.process else 0
    self._status, self._writing = status, 0
    self._patience = SECONDS_TO_EXIT[several]
    if self.first is not None:
      self._deadline = time.monotonic() + self._patience

  def end(self, message: str, status: int) -> NoReturn:
    """Ends the process; an earlier signal or status has priority."""
    # Only one thread prints the line. Another thread waits here until the
    # process ends.
    self._ends.acquire()
    if self._status is not None:
      os._exit(self._status)
    if self.first is not None:
      status, message = STATUSES[signal.Signals(self.first)], "interrupted"
      if self.first != signal.SIGINT:
        message = f"told to leave by {signal.Signals(self.first).name}"
      message += f"; {self.remedy}"
    _write_line(f"diffdistill: {self.process}{message}\n")
    cleaner = threading.Thread(target=self._clean, daemon=True)
    cleaner.start()
    cleaner.join(SECONDS_TO_CLEAN)
    os._exit(status)

  def _clean(self) -> None:
    for clean in reversed(self._unfinished):
      with contextlib.suppress(Exception):
        clean()

  def _watch(self, read: int) -> None:
    while True:
      wait = None if self.first is None else 0.1
      ready, _, _ = select.select([read], [], [], wait)
      for number in os.read(read, 64) if ready else b"":
        if number in STATUSES:
          self.note(number)
        if number == signal.SIGINT and self._again():
          self.end("interrupted", 130)
      if time.monotonic() > self._deadline and not self._writing:
        self.end("told to leave", 75)

  def _again(self) -> bool:
    """Notes an interrupt; returns whether it is the second one."""
    self._interrupts.append(time.monotonic())
    return self._interrupts[-1] - self._interrupts[0] > ONE_INTERRUPT

  def _hang_up(self) -> None:
    """Drops all later output to a terminal that is gone.

    Otherwise the next progress line would raise an error and end a run that has
    not saved yet.
    """
    for number in self._terminals:
      if not os.isatty(number):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


_listener: Listener | None = None


def _write_line(line: str) -> None:
  # Do not use sys.stderr here, because the main thread may hold its lock.
  with contextlib.suppress(OSError):
    os.write(2, line.encode())


def listener() -> Listener | None:
  """Returns the listener of this process; None in a notebook and in tests."""
  return _listener


def run(command: Callable[[], int], remedy: str) -> int:
  """Runs a command; returns its exit status, unless a signal ends the process.

  Args:
    command: the command; slow imports must be inside it.
    remedy: a text that says what a person can do after the command has ended.
  """
  global _listener
  _listener = Listener(remedy)
  _listener.start()
  status = command()
  _listener.over(status)
  return status


def end(message: str, status: int) -> NoReturn:
  """Ends this process at once with one line, from any thread."""
  if _listener is not None:
    _listener.end(message, status)
  _write_line(f"diffdistill: {message}\n")
  os._exit(status)


def at_end(act: Callable[[], object]) -> None:
  """Sets a function to call if a signal ends this process."""
  if _listener is not None:
    _listener.at_end(act)


def name_process(index: int, count: int) -> None:
  """Puts the index of this process into its last line."""
  if _listener is not None:
    _listener.process = f"process {index} of {count}: "


def writing() -> contextlib.AbstractContextManager[None]:
  """Lets a write inside the `with` finish before a signal ends the process."""
  return _listener.writing() if _listener else contextlib.nullcontext()


def unfinished(
  clean: Callable[[], object],
) -> contextlib.AbstractContextManager[None]:
  """Calls a clean-up function if a signal ends the process inside the `with`.

  Args:
    clean: removes the unfinished thing; another thread calls it.
  """
  if _listener is None:
    return contextlib.nullcontext()
  return _listener.unfinished(clean)
