"""Starts processes for tests, and lets tests wait for events.

A test waits for an event and never for a fixed time, because everything takes
several times as long on a busy machine. `PATIENCE` only ends a test that hangs.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import time
import uuid
from collections.abc import Callable

# The longest wait in seconds. On an idle machine, every wait takes less than a
# minute.
PATIENCE = 900
PROC = pathlib.Path("/proc")


def wait_until(
  true: Callable[[], object],
  *processes,
  said: Callable[[int], object] = lambda number: "",
) -> None:
  """Waits until `true()`.

  Args:
    true: the condition, which is checked again and again; it must be cheap.
    processes: processes that must not end before (Popen or multiprocessing).
    said: a function that gives the output of a process by its index, for the
      failure message.
  """
  end = time.monotonic() + PATIENCE
  while True:
    # Look at the processes before calling `true`, because a process may make it
    # true and then end.
    ended = [i for i, p in enumerate(processes) if _status(p) is not None]
    if true():
      return
    if ended:
      raise AssertionError(
        f"{processes[ended[0]]} ended before what was waited for:"
        f" {said(ended[0])}"
      )
    assert time.monotonic() < end, "what was waited for did not happen"
    time.sleep(0.01)


def _status(process):
  poll = getattr(process, "poll", None)
  return poll() if poll else process.exitcode


def hear_all_signals() -> None:
  """Lets child processes receive the signals that this process ignores.

  A shell makes background commands ignore SIGINT, and nohup makes a command
  ignore SIGHUP; child processes inherit this.
  """
  for number, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
  ):
    if signal.getsignal(number) is signal.SIG_IGN:
      signal.signal(number, usual)


class Children:
  """The processes of one test, and all processes that these start.

  As a context manager it kills all living processes at the end. A process that
  has left its group or lost its parent is found by an environment variable.
  """

  def __init__(self):
    self._name, self._value = "DIFFDISTILL_TEST", uuid.uuid4().hex
    self._started: list[subprocess.Popen] = []

  def __enter__(self) -> "Children":
    return self

  def __exit__(self, *_) -> None:
    self.kill()

  def start(self, *command, env=None, **options) -> subprocess.Popen:
    """Like subprocess.Popen, in a new session."""
    environment = {**(os.environ if env is None else env)}
    environment[self._name] = self._value
    process = subprocess.Popen(
      list(map(str, command)),
      env=environment,
      start_new_session=True,
      **options,
    )
    self._started.append(process)
    return process

  def finish(
    self, process: subprocess.Popen, text: str | None = None
  ) -> subprocess.CompletedProcess:
    """Waits until a process has ended and its output is closed."""
    try:
      out, err = process.communicate(text, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
      self.kill()
      out, err = process.communicate()
      raise AssertionError(
        f"{process.args} has not ended in {PATIENCE} s; it said {out} {err}"
      ) from None
    return subprocess.CompletedProcess(
      process.args, process.returncode, out, err
    )

  def run(self, *command, text=None, check=False, **options):
    """Like subprocess.run with text; both outputs are captured."""
    defaults = {
      "stdin": subprocess.DEVNULL if text is None else subprocess.PIPE,
      "stdout": subprocess.PIPE,
      "stderr": subprocess.PIPE,
    }
    process = self.start(*command, text=True, **(defaults | options))
    done = self.finish(process, text)
    assert not (check and done.returncode), (done.stdout, done.stderr)
    return done

  def alive(self) -> list[int]:
    """The ids of all living processes of the test."""
    mark = f"{self._name}={self._value}".encode()
    found = [p.pid for p in self._started if p.poll() is None]
    for path in PROC.glob("[0-9]*/environ"):
      # The process may just have ended, may belong to another user, or may be a
      # zombie.
      with contextlib.suppress(OSError):
        if mark in path.read_bytes().split(b"\0"):
          found.append(int(path.parent.name))
    return sorted(set(found))

  def kill(self) -> None:
    """Kills all living processes at once, like the loss of a machine."""

    def gone():
      for process in self._started:
        with contextlib.suppress(ProcessLookupError):
          os.killpg(process.pid, signal.SIGKILL)
      # A killed process may have started another process just before.
      for pid in (pids := self.alive()):
        with contextlib.suppress(ProcessLookupError):
          os.kill(pid, signal.SIGKILL)
      return not pids

    wait_until(gone)
    for process in self._started:
      for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
          stream.close()
    self._started.clear()
