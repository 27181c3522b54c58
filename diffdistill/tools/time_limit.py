"""Runs a recipe from its data to its results under a time limit.

`diffdistill run` starts train, evaluate, benchmark and report as child
processes. When the time is over, the child is told to save and leave. The same
command line then continues from the files in the workdir. One such call is a
piece. It must be long enough for a row of an evaluation, the benchmark and a
report, which start over in the next piece. The parent uses no device.
"""

import contextlib
import dataclasses
import fcntl
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from etils import epath

from diffdistill.system import own_python, signals
from diffdistill.system.files import in_bucket, write_atomically
from diffdistill.system.refusals import UsageError

PROGRAM = own_python.command("diffdistill")
CHECK = own_python.command("diffdistill.tools.device")
# The seconds after which a device's driver without an answer counts as hung.
SECONDS_TO_CHECK = 300
# The seconds to wait for a workdir, which a killed piece's child may hold.
SECONDS_TO_HOLD = 10
GO_ON = "the same command goes on"


class StoppedError(Exception):
  """A call of `diffdistill run` ended, with a status, before all was done."""

  def __init__(self, message: str, status: int = 75):
    super().__init__(message)
    self.status = status


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeLimit:
  """The time limit of a piece, which is one call of `diffdistill run`.

  Args:
    minutes: the minutes of the whole piece; 0 means no limit.
    reserve: the last seconds of the piece, in which a child saves and leaves.
    begun: the monotonic time at which the piece began.
  """

  minutes: float
  reserve: int | float
  begun: float

  def left(self) -> float:
    """The seconds until a child must begin to leave."""
    if not self.minutes:
      return math.inf
    end = self.begun + 60 * self.minutes - self.reserve
    return max(0.0, end - time.monotonic())

  def check(self, when: str) -> None:
    """Stops the piece if its time is over or a signal told it to leave.

    Args:
      when: the place in the recipe, for the message, such as "before train".

    Raises:
      StoppedError: if the time is over or a signal arrived.
    """
    if number := _heard():
      raise StoppedError(f"told to leave {when}; {GO_ON}", _status(number))
    if not self.left():
      raise StoppedError(f"{self.minutes:g} minutes are over {when}; {GO_ON}")


def run(
  config: Sequence[str],
  workdir: epath.Path,
  results: epath.Path,
  *,
  minutes: float,
  reserve: int | float,
  cpu: bool,
) -> None:
  """Trains, evaluates, times and reports a recipe; skips what is already done.

  Args:
    config: the words of the command line for the recipe, --config=... first.
    workdir: the folder of the run.
    results: the folder for the report, the curve and the sheet.
    minutes: the minutes that this piece may take in all; 0 means no limit.
    reserve: the last seconds of the piece, in which a child saves and leaves.
    cpu: whether a CPU may be used if there is no GPU or TPU.

  Raises:
    StoppedError: if the time is over, or a signal or a failure ends the piece.
    UsageError: if `reserve` is not shorter than `minutes`.
    ValueError: if another piece is running in the workdir.
  """
  if minutes and 60 * minutes <= reserve:
    raise UsageError(
      f"--minutes is {minutes:g}, which is no more than --reserve={reserve}"
      " seconds; pass more minutes"
    )
  if listener := signals.listener():
    listener.leave()  # on a signal this process stops the child, then leaves
  limit = TimeLimit(minutes=minutes, reserve=reserve, begun=time.monotonic())
  with _held(workdir) as held:
    children = Children(limit, held)
    device = children.device(cpu)
    children.finish("train", *config, f"--workdir={workdir}")
    children.finish("evaluate", f"--workdir={workdir}")
    # The benchmark runs only once for each kind of device.
    speeds = workdir / f"benchmark_{device}.json"
    if not speeds.exists():
      printed = children.finish("benchmark", *config, "--num_updates=10")
      write_atomically(speeds, printed)
    results.mkdir(parents=True, exist_ok=True)
    name = f"{_recipe(config[0])}_{device}"
    for ending in ("json", "html"):
      out = f"--out={results / name}.{ending}"
      children.finish("report", f"--workdir={workdir}", out)
  # The curve is missing if matplotlib is not installed.
  for picture, copy in (
    (workdir / "samples" / "compared.png", results / f"{name}_compared.png"),
    (workdir / "evaluation.png", results / f"{name}_curve.png"),
  ):
    if picture.exists():
      write_atomically(copy, picture.read_bytes())
  _say(f"finished: {results / name}.json")


class Children:
  """Runs commands one after the other, within the time that is left.

  Args:
    limit: the time limit of the piece.
    held: the file descriptor of the workdir's lock, which each child holds too;
      None if the workdir has no lock.
  """

  def __init__(self, limit: TimeLimit, held: int | None):
    self._limit = limit
    self._held = () if held is None else (held,)
    self._environment = own_python.environment()

  def device(self, cpu: bool) -> str:
    """The device's name, fit for a file name.

    Raises:
      StoppedError: if JAX does not find its device in time.
    """
    check = (*CHECK, *(["--cpu"] if cpu else []))
    status, printed = self._run("the check", check, SECONDS_TO_CHECK)
    if status in (-signal.SIGTERM, -signal.SIGKILL):
      raise StoppedError(
        f"JAX does not find its device in {SECONDS_TO_CHECK} s; {GO_ON}", 70
      )
    if status:
      sys.exit(1)  # the check has printed the reason
    # A plugin of JAX may print lines before the device's name.
    return printed.decode().splitlines()[-1]

  def finish(self, name: str, *words: str) -> bytes:
    """Runs a command to its end; returns the output of a benchmark.

    Raises:
      StoppedError: if the command has not finished.
    """
    self._limit.check(f"before {name}")
    _say(name)
    status, printed = self._run(name, (*PROGRAM, name, *words), math.inf)
    if status == 75:
      raise StoppedError(f"{name} was told to leave; {GO_ON}")
    if status in (-signal.SIGTERM, -signal.SIGKILL):
      raise StoppedError(f"{name} was killed; {GO_ON}", 70)
    if status in (1, 2, 70, 130):
      sys.exit(status)  # the command has printed the reason
    if status:
      raise StoppedError(f"{name} died with status {status}; {GO_ON}", 70)
    return printed

  def _run(
    self, name: str, command: Sequence[str], most: float
  ) -> tuple[int, bytes]:
    """Runs a command; stops it when the limit is reached or a signal arrives.

    Args:
      name: the name of the command, for messages.
      command: the words of the command line.
      most: the most seconds that the command may take.

    Returns:
      The exit status; and the output of the command, which is kept only for
      the check and the benchmark and is empty for other commands.

    Raises:
      StoppedError: if the limit or a signal has ended the command.
    """
    self._limit.check(f"before {name}")
    piped = name in ("the check", "benchmark")
    with tempfile.TemporaryFile() as printed:
      status = self._wait(command, most, printed if piped else None)
      if _heard() or status in (75, -signal.SIGTERM, -signal.SIGKILL):
        self._limit.check(f"in {name}")
      printed.seek(0)
      return status, printed.read()

  def _wait(
    self, command: Sequence[str], most: float, printed: IO[bytes] | None
  ) -> int:
    """Runs a command, at most for a number of seconds; returns its exit status.

    All processes that the command started are killed at its end.
    """
    process = subprocess.Popen(
      command,
      stdin=subprocess.DEVNULL,
      stdout=printed,
      env=self._environment,
      pass_fds=self._held,
      start_new_session=True,  # makes a process group, which `kill` can end
    )

    def kill() -> None:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)

    # A second interrupt ends this process at once, so it must kill first.
    with signals.unfinished(kill):
      try:
        told = time.monotonic() + min(most, self._limit.left())
        while not _ended(process) and time.monotonic() < told and not _heard():
          pass
        process.terminate()  # does nothing if the process has ended
        killed = time.monotonic() + self._limit.reserve
        while not _ended(process) and time.monotonic() < killed:
          pass
      finally:
        kill()
    return process.wait()


def _ended(process: subprocess.Popen) -> bool:
  """Whether a process has ended, or ends within 0.2 seconds."""
  try:
    process.wait(timeout=0.2)
  except subprocess.TimeoutExpired:
    return False
  return True


@contextlib.contextmanager
def _held(workdir: epath.Path) -> Iterator[int | None]:
  """Holds a lock, so that only one piece at a time runs in a workdir.

  A child holds the lock too. If its parent is killed, the next piece waits
  until the child has ended.

  Yields:
    The file descriptor of the lock; None if the workdir is in a bucket.
  """
  if in_bucket(workdir):
    yield None
    return
  workdir.parent.mkdir(parents=True, exist_ok=True)
  descriptor = os.open(f"{workdir}.lock", os.O_RDWR | os.O_CREAT, 0o644)
  try:
    end = time.monotonic() + SECONDS_TO_HOLD
    while not _locked(descriptor):
      if time.monotonic() > end:
        raise ValueError(f"something is at work on {workdir}; wait for it")
      time.sleep(0.1)
    yield descriptor
  finally:
    os.close(descriptor)


def _locked(descriptor: int) -> bool:
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True


def _recipe(word: str) -> str:
  """The name of the recipe's file: cifar10 for --config=cifar10:half_hour."""
  stem = Path(word.partition("=")[2].partition(":")[0]).stem
  return re.sub(r"\W+", "_", stem)


def _heard() -> int | None:
  """The number of the signal that told this process to leave, or None."""
  listener = signals.listener()
  return None if listener is None else listener.first


def _status(number: int) -> int:
  return signals.STATUSES[signal.Signals(number)]


def _say(line: str) -> None:
  print(f"diffdistill run: {line}", file=sys.stderr, flush=True)
