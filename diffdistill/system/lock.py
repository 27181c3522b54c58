"""The lock of a workdir: one training at a time, on whatever host it runs.

`lock.json` names the host and the process that hold the workdir. The holder
writes it anew every RENEW_SECONDS. Another training that finds it watches it:
if it changes, the holder is alive, and the new training is refused; if it stays
the same for STALE_SECONDS, the new one takes it over. Clocks of hosts differ,
so nothing depends on the time that a file bears. A holder that is dead on this
very host is known at once.

A holder whose lock was taken over, as after it was suspended, ends at once: two
never both train. What only reads a workdir asks for no lock.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from etils import epath

from diffdistill.system import hosts, signals
from diffdistill.system.files import in_bucket, read_json, write_json

NAME = "lock.json"
RENEW_SECONDS = 10.0
STALE_SECONDS = 60.0
# Between two looks at another's lock, and between two words to other processes
# of this run, which wait for the first.
POLL_SECONDS, WORD_SECONDS = 1.0, 5.0
# Where no look and write can be one, two may write; the last one counts.
SETTLE_SECONDS = 2.0

Say = Callable[[str], None]
# The bytes of a lock, and when a disk says that they were written.
Signature = tuple[bytes, int]


class Lock:
  """What one process knows of the lock of a workdir.

  Args:
    workdir: the folder.
    say: is told of a wait, and where the lock cannot be renewed.
    end: ends the process, with a line; only tests pass another.
  """

  def __init__(
    self, workdir: epath.Path, say: Say, end: Say | None = None
  ) -> None:
    self._workdir, self._path = workdir, workdir / NAME
    self._say, self._end = say, end or _end
    self._fields = {**_identity(), "nonce": secrets.token_hex(8)}
    self._count = 0
    self._seen: Signature | None = None
    self._since = 0.0
    self._stop = threading.Event()
    self._thread: threading.Thread | None = None

  def attempt(self, seconds: float, take: bool = True) -> bool:
    """Waits for the lock for some seconds; whether this process may go on.

    Args:
      seconds: to wait in this call; what was seen is remembered for the next.
      take: whether to hold it from then on, or only to see that nobody does.

    Raises:
      ValueError: where another process holds it and is alive.
    """
    until = time.monotonic() + seconds
    while True:
      seen = self.look()
      if self._is_free(seen) and (not take or self._take(seen)):
        return True
      left = until - time.monotonic()
      if left <= 0:
        return False
      time.sleep(min(left, POLL_SECONDS * (5 if in_bucket(self._path) else 1)))

  def look(self) -> Signature | None:
    """The lock as it is now; None where there is none."""
    if not self._path.exists():
      return None
    local = not in_bucket(self._path)
    try:
      # A full disk may leave nothing else to renew (see _renew).
      written = os.stat(self._path).st_mtime_ns if local else 0
      return self._path.read_bytes(), written
    except FileNotFoundError:
      return None

  def release(self) -> None:
    """Gives the lock back, if this process has written it and holds it."""
    self._stop.set()
    if self._thread is not None:
      self._thread.join(RENEW_SECONDS)
    if not self._count:
      return
    try:
      with _alone(self._workdir):
        if self._holder().get("nonce") == self._fields["nonce"]:
          self._path.unlink(missing_ok=True)
    except OSError as error:
      self._say(f"{self._path} could not be removed ({error})")

  def _is_free(self, seen: Signature | None) -> bool:
    """Whether nobody holds it any more."""
    if seen is None or _is_dead(holder := self._holder()):
      return True
    now = time.monotonic()
    if self._seen is None:
      self._seen, self._since = seen, now
      self._say(
        f"waits up to {STALE_SECONDS:g} s: {self._workdir} is held by"
        f" {_named(holder)}"
      )
    if seen != self._seen:
      raise ValueError(
        f"{self._workdir} is in use: {_named(holder)} trains there; wait until"
        " it ends, or pass another --workdir"
      )
    return now - self._since >= STALE_SECONDS

  def _take(self, seen: Signature | None) -> bool:
    """Writes this process's lock in place of what was seen; whether it held."""
    self._workdir.mkdir(parents=True, exist_ok=True)
    with _alone(self._workdir) as alone:
      if self.look() != seen:
        return False
      self._write()
    if not alone:
      time.sleep(SETTLE_SECONDS)
      if self._holder().get("nonce") != self._fields["nonce"]:
        return False
    self._thread = threading.Thread(target=self._keep, name="lock", daemon=True)
    self._thread.start()
    return True

  def _keep(self) -> None:
    """Renews the lock until it is released."""
    renewed, said = time.monotonic(), False
    while not self._stop.wait(RENEW_SECONDS):
      try:
        taken_by = self._renew()
      except Exception as error:
        # A bucket that does not answer, a disk that is away: it may come back.
        if time.monotonic() - renewed > STALE_SECONDS and not said:
          said = True
          self._say(
            f"{self._path} has not been renewed for {STALE_SECONDS:g} s"
            f" ({type(error).__name__}: {error}); another training may take"
            f" {self._workdir} over"
          )
        continue
      if taken_by:
        self._end(
          f"{self._workdir} was taken over by {taken_by}, as this process had"
          " not renewed its lock in time; it ends, so that no two train there"
        )
        return
      renewed, said = time.monotonic(), False

  def _renew(self) -> str:
    """Writes it anew; returns who has taken it over, if somebody has."""
    if not in_bucket(self._workdir) and not self._workdir.exists():
      raise FileNotFoundError(errno.ENOENT, "is gone", str(self._workdir))
    with _alone(self._workdir):
      holder = self._holder()
      if holder.get("nonce", self._fields["nonce"]) != self._fields["nonce"]:
        return _named(holder)
      if self._stop.is_set():
        return ""
      try:
        self._write()
      except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
          raise
        # That takes no space.
        os.utime(self._path)
    return ""

  def _write(self) -> None:
    self._count += 1
    fields = {**self._fields, "renewed": self._count}
    write_json(self._path, fields, self._fields["nonce"])

  def _holder(self) -> dict[str, Any]:
    """What the lock says; nothing where there is none, or it is damaged."""
    try:
      return read_json(self._path)
    except (ValueError, FileNotFoundError):
      return {}


@contextlib.contextmanager
def held(workdir: epath.Path, say: Say) -> Iterator[None]:
  """Holds a workdir; every process of a run calls it, and the first does it.

  Raises:
    ValueError: where another process holds it and is alive.
  """
  lock = Lock(workdir, say)
  with signals.unfinished(lock.release):
    try:
      while not hosts.on_first(lambda: lock.attempt(WORD_SECONDS)):
        pass
      yield
    finally:
      if hosts.is_first():
        lock.release()


@contextlib.contextmanager
def idle(workdir: epath.Path, say: Say) -> Iterator[None]:
  """Sees to it that nobody trains in a workdir meanwhile; holds nothing.

  Raises:
    ValueError: where somebody does, or has begun to by the end.
  """
  lock = Lock(workdir, say)
  while not hosts.on_first(lambda: lock.attempt(WORD_SECONDS, take=False)):
    pass
  before = lock.look()
  yield

  def compare() -> None:
    if lock.look() != before:
      raise ValueError(
        f"a training has begun in {workdir} meanwhile; wait until it ends, and"
        " run the command again"
      )

  hosts.on_first(compare)


@contextlib.contextmanager
def _alone(folder: epath.Path) -> Iterator[bool]:
  """Whether no other process looks and writes meanwhile.

  False in a bucket, and on a disk of another host that has no such locks.
  """
  descriptor = None
  if not in_bucket(folder):
    try:
      descriptor = os.open(folder, os.O_RDONLY)
      fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
      if descriptor is not None:
        os.close(descriptor)
      descriptor = None
  try:
    yield descriptor is not None
  finally:
    if descriptor is not None:
      os.close(descriptor)


def _identity() -> dict[str, Any]:
  """This process, as no other one of any host is called."""
  return {
    "host": socket.gethostname(),
    "boot": _boot(),
    "process": os.getpid(),
    "started": _started(os.getpid()),
  }


def _boot() -> str:
  """Within what a process's number means one process: "" where unknown."""
  try:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
  except OSError:
    return ""


def _started(process: int) -> str:
  """When a process of this host started; "" where it has ended."""
  try:
    text = Path(f"/proc/{process}/stat").read_text()
  except OSError:
    return ""
  # After the name, which may hold anything: see proc(5).
  state, *fields = text.rpartition(")")[2].split()
  return "" if state in "ZX" else fields[18]


def _is_dead(holder: dict[str, Any]) -> bool:
  """Whether a holder is known to have ended, as one of this host can be."""
  here = _identity()
  if not here["boot"] or any(
    holder.get(name) != here[name] for name in ("host", "boot")
  ):
    return False
  process = holder.get("process")
  return isinstance(process, int) and (
    _started(process) != holder.get("started")
  )


def _named(holder: dict[str, Any]) -> str:
  if "process" not in holder:
    return "a process that its damaged lock does not name"
  return f"process {holder['process']} on {holder['host']}"


def _end(line: str) -> None:
  """Ends the process as it is: it must not write to that workdir any more."""
  sys.stderr.write(f"diffdistill: {line}\n")
  sys.stderr.flush()
  os._exit(1)
