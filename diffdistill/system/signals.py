"""Signals: from its first moment on, a command ends in one line, in seconds.

SIGTERM and SIGHUP tell a command to leave (status 75), SIGINT (ctrl-C)
interrupts it (130). The process then ends at once. Where a loop can save
between two updates, it has some seconds to reach the next boundary
(training/preemption.py).

A thread does all this. Python runs a signal's handler in the main thread, which
cannot run it while it waits inside a library for a compiler, a device or a
disk. An exception that a handler raises is no help either: where a library of
C++ calls Python, as at many an import, it is lost or crashes the process.

This file imports neither jax nor anything else that takes long.
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
# These stay ignored where whoever started the command ignores them: nohup does
# so with SIGHUP, and a shell with SIGINT for what it starts in the background.
MAY_BE_IGNORED = (signal.SIGHUP, signal.SIGINT)
# A loop has so long to reach the next boundary, and longer, up to the second
# number, where its boundaries are far apart. `docker stop` kills after 10 s,
# and a spot machine is gone after 30.
SECONDS_TO_BOUNDARY = (9.0, 20.0)
# A command that is done has so long to exit. Of several processes, which wait
# for each other then, each has as long as the second number says.
SECONDS_TO_EXIT = (5.0, 60.0)
# Unfinished files have to be removed by then; a disk may not answer.
SECONDS_TO_CLEAN = 3.0
# One ctrl-C may come twice: from the terminal, and from a program between.
ONE_INTERRUPT = 0.5


class Listener:
  """Hears signals, and ends the process.

  Args:
    remedy: what a person can do after the command has ended, in words.
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
    """Listens from now on; called by the main thread."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    threading.Thread(
      target=self._watch, args=(read,), name="signals", daemon=True
    ).start()
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in self.numbers:
      signal.signal(number, self.note)

  def note(self, number: int, frame: FrameType | None = None) -> None:
    """The first signal decides how the process ends, and by when."""
    if self.first is None:
      self.first = number
      self._deadline = time.monotonic() + self._patience
    if number == signal.SIGHUP:
      self._hang_up()

  def boundary(self) -> None:
    """A loop is at a boundary, where it could have left."""
    now = time.monotonic()
    least, most = SECONDS_TO_BOUNDARY
    if self._boundary:
      least = min(max(least, 4 * (now - self._boundary)), most)
    self._boundary, self._patience = now, least

  def leave(self) -> None:
    """The loop saves and leaves; it is left to finish."""
    self._writing += 1

  @contextlib.contextmanager
  def writing(self) -> Iterator[None]:
    """What is being written is left to finish, by the main thread."""
    self._writing += 1
    try:
      yield
    finally:
      self._writing -= 1

  def at_end(self, act: Callable[[], object]) -> None:
    """Does this if a signal ends the process."""
    self._unfinished.append(act)

  @contextlib.contextmanager
  def unfinished(self, clean: Callable[[], object]) -> Iterator[None]:
    """What is being made is cleaned up if the process ends meanwhile."""
    self.at_end(clean)
    try:
      yield
    finally:
      self._unfinished.remove(clean)

  def over(self, status: int) -> None:
    """The command is done; signals change its status no more."""
    several = 1 if self.process else 0
    self._status, self._writing = status, 0
    self._patience = SECONDS_TO_EXIT[several]
    if self.first is not None:
      self._deadline = time.monotonic() + self._patience

  def end(self, message: str, status: int) -> NoReturn:
    """Ends the process; what a signal or the command says of it comes first."""
    # Only one thread speaks; another waits here for the end of both.
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
    """Whether this interrupt is a second one."""
    self._interrupts.append(time.monotonic())
    return self._interrupts[-1] - self._interrupts[0] > ONE_INTERRUPT

  def _hang_up(self) -> None:
    """What is printed on a terminal that is gone goes nowhere.

    Otherwise the next line of progress would be an error, and the last one of a
    run that has not saved yet.
    """
    for number in self._terminals:
      if not os.isatty(number):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


_listener: Listener | None = None


def _write_line(line: str) -> None:
  # Not by sys.stderr, whose lock the main thread may hold.
  with contextlib.suppress(OSError):
    os.write(2, line.encode())


def listener() -> Listener | None:
  """What listens in this process; None in a notebook and in tests."""
  return _listener


def run(command: Callable[[], int], remedy: str) -> int:
  """Runs a command; returns its exit status, unless a signal ends the process.

  Args:
    command: imports what takes long itself.
    remedy: what a person can do after it has ended, in words.
  """
  global _listener
  _listener = Listener(remedy)
  _listener.start()
  status = command()
  _listener.over(status)
  return status


def end(message: str, status: int) -> NoReturn:
  """Ends this process at once, from any thread, in one line."""
  if _listener is not None:
    _listener.end(message, status)
  _write_line(f"diffdistill: {message}\n")
  os._exit(status)


def at_end(act: Callable[[], object]) -> None:
  """Does this if a signal ends this process."""
  if _listener is not None:
    _listener.at_end(act)


def name_process(index: int, count: int) -> None:
  """Says in this process's last line which of several it is."""
  if _listener is not None:
    _listener.process = f"process {index} of {count}: "


def writing() -> contextlib.AbstractContextManager[None]:
  """What is being written meanwhile is left to finish."""
  return _listener.writing() if _listener else contextlib.nullcontext()


def unfinished(
  clean: Callable[[], object],
) -> contextlib.AbstractContextManager[None]:
  """What is being made meanwhile is cleaned up if a signal ends the process.

  Args:
    clean: removes it; called by another thread.
  """
  if _listener is None:
    return contextlib.nullcontext()
  return _listener.unfinished(clean)
