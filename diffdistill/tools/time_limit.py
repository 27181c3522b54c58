"""A recipe from its data to its results under one time limit, in pieces.

Each command runs as a child process: train, evaluate, benchmark and report. At
the end of the time the child is told to save and leave, and the next piece,
which is the same command, goes on from what is in the workdir. A row of an
evaluation, the benchmark and a report begin anew in the next piece, so a piece
has to be long enough for one of them.

This process uses no device: the children need it.
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

from diffdistill.system import signals
from diffdistill.system.files import in_bucket, write_atomically
from diffdistill.system.refusals import UsageError

PROGRAM = (sys.executable, "-m", "diffdistill")
CHECK = (sys.executable, "-m", "diffdistill.tools.device")
# A driver that hangs answers neither sooner nor later.
SECONDS_TO_CHECK = 300
# A killed piece may have left a child behind, which ends within seconds.
SECONDS_TO_HOLD = 10
GO_ON = "the same command goes on"


class StoppedError(Exception):
  """The piece has ended before the recipe is done; the message says why.

  Args:
    message: why, and what to do next.
    status: of the command.
  """

  def __init__(self, message: str, status: int = 75):
    super().__init__(message)
    self.status = status


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeLimit:
  """How long a piece may take.

  Args:
    minutes: for the whole piece; 0 for no limit.
    reserve: the last seconds of them, in which a child saves and leaves.
    begun: the monotonic time at which the piece began.
  """

  minutes: float
  reserve: int | float
  begun: float

  def left(self) -> float:
    """Seconds until a child must begin to leave."""
    if not self.minutes:
      return math.inf
    end = self.begun + 60 * self.minutes - self.reserve
    return max(0.0, end - time.monotonic())

  def check(self, when: str) -> None:
    """Stops the piece where its time is over, or where it is told to leave."""
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
  """Trains, evaluates, times and reports a recipe; does what is not done yet.

  Args:
    config: the recipe's words on the command line, --config=... first.
    workdir: of the run.
    results: the folder for the report, the curve and the sheet.
    minutes: that this piece may take, all told; 0 for no limit.
    reserve: seconds of them in which what was trained is saved.
    cpu: whether a CPU will do.

  Raises:
    StoppedError: where time is over, or a signal or a failure ends the piece.
    UsageError: where all the minutes are kept for saving.
    ValueError: where another piece is at work on the workdir.
  """
  if minutes and 60 * minutes <= reserve:
    raise UsageError(
      f"--minutes is {minutes:g}, which is no more than --reserve={reserve}"
      " seconds; pass more minutes"
    )
  if listener := signals.listener():
    listener.leave()  # a signal tells the child, and this process waits for it
  limit = TimeLimit(minutes=minutes, reserve=reserve, begun=time.monotonic())
  with _held(workdir) as held:
    children = Children(limit, held)
    device = children.device(cpu)
    children.finish("train", *config, f"--workdir={workdir}")
    children.finish("evaluate", f"--workdir={workdir}")
    # Another device has another speed.
    speeds = workdir / f"benchmark_{device}.json"
    if not speeds.exists():
      printed = children.finish("benchmark", *config, "--num_updates=10")
      write_atomically(speeds, printed)
    results.mkdir(parents=True, exist_ok=True)
    name = f"{_recipe(config[0])}_{device}"
    for ending in ("json", "html"):
      out = f"--out={results / name}.{ending}"
      children.finish("report", f"--workdir={workdir}", out)
  # Without matplotlib there is no curve, as the evaluation has said.
  for picture, copy in (
    (workdir / "samples" / "compared.png", results / f"{name}_compared.png"),
    (workdir / "evaluation.png", results / f"{name}_curve.png"),
  ):
    if picture.exists():
      write_atomically(copy, picture.read_bytes())
  _say(f"finished: {results / name}.json")


class Children:
  """Runs commands, one after the other, each within what time is left.

  Args:
    limit: of the piece.
    held: the descriptor of the workdir's lock, which each child holds too.
  """

  def __init__(self, limit: TimeLimit, held: int | None):
    self._limit = limit
    self._held = () if held is None else (held,)
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    # All children share what is compiled.
    self._environment = {
      "JAX_COMPILATION_CACHE_DIR": str(caches / "diffdistill" / "xla"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
      **os.environ,
    }

  def device(self, cpu: bool) -> str:
    """The device's name, as a part of a file's name."""
    check = (*CHECK, *(["--cpu"] if cpu else []))
    status, printed = self._run("the check", check, SECONDS_TO_CHECK)
    if status in (-signal.SIGTERM, -signal.SIGKILL):
      raise StoppedError(
        f"JAX does not find its device in {SECONDS_TO_CHECK} s; {GO_ON}", 70
      )
    if status:
      sys.exit(1)  # the check has said why
    # A plugin may print lines before it.
    return printed.decode().splitlines()[-1]

  def finish(self, name: str, *words: str) -> bytes:
    """Runs a command to its end; returns what a benchmark printed.

    Raises:
      StoppedError: where it has not finished.
    """
    self._limit.check(f"before {name}")
    _say(name)
    status, printed = self._run(name, (*PROGRAM, name, *words), math.inf)
    if status == 75:
      raise StoppedError(f"{name} was told to leave; {GO_ON}")
    if status in (-signal.SIGTERM, -signal.SIGKILL):
      raise StoppedError(f"{name} was killed; {GO_ON}", 70)
    if status in (1, 2, 70, 130):
      sys.exit(status)  # the command has said why
    if status:
      raise StoppedError(f"{name} died with status {status}; {GO_ON}", 70)
    return printed

  def _run(
    self, name: str, command: Sequence[str], most: float
  ) -> tuple[int, bytes]:
    """The status of a command, and what it printed if that is its result.

    Raises:
      StoppedError: where the limit or a signal has ended it.
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
    """Runs a command for so many seconds at most; nothing of it is left."""
    process = subprocess.Popen(
      command,
      stdin=subprocess.DEVNULL,
      stdout=printed,
      env=self._environment,
      pass_fds=self._held,
      start_new_session=True,  # to end what it leaves behind, too
    )

    def kill() -> None:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)

    # This process may be interrupted a second time, which ends it at once.
    with signals.unfinished(kill):
      try:
        told = time.monotonic() + min(most, self._limit.left())
        while not _ended(process) and time.monotonic() < told and not _heard():
          pass
        process.terminate()  # nothing where it has ended
        killed = time.monotonic() + self._limit.reserve
        while not _ended(process) and time.monotonic() < killed:
          pass
      finally:
        kill()
    return process.wait()


def _ended(process: subprocess.Popen) -> bool:
  """Whether a process has ended, or does within a moment."""
  try:
    process.wait(timeout=0.2)
  except subprocess.TimeoutExpired:
    return False
  return True


@contextlib.contextmanager
def _held(workdir: epath.Path) -> Iterator[int | None]:
  """A lock for one piece at a time; its descriptor, or None in a bucket.

  A child holds the lock as well: where its parent was killed, the next piece
  does not begin beside it.
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
  """The name of the recipe's file: cifar10 of --config=cifar10:half_hour."""
  stem = Path(word.partition("=")[2].partition(":")[0]).stem
  return re.sub(r"\W+", "_", stem)


def _heard() -> int | None:
  """The signal that tells this process to leave."""
  listener = signals.listener()
  return None if listener is None else listener.first


def _status(number: int) -> int:
  return signals.STATUSES[signal.Signals(number)]


def _say(line: str) -> None:
  print(f"diffdistill run: {line}", file=sys.stderr, flush=True)
