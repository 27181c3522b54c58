"""Locks a workdir, so that only one training at a time uses it, on any host.

`lock.json` names the host and the process that hold the workdir. The holder
writes the file again every RENEW_SECONDS. A new training that finds the file
watches it. If the file changes, the holder is alive, and the new training is
refused. If the file stays the same for STALE_SECONDS, the new training takes
the workdir over. No file time is compared with a clock: hosts' clocks differ.
If the holder was on this host and has ended, the new training sees it at once.

If a holder's lock was taken over, for example while it was suspended, the
holder ends at once, so that two trainings never run. Commands that only read a
workdir need no lock.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from diffdistill.system import buckets, hosts, signals
from diffdistill.system.files import (
  in_bucket,
  json_of,
  read_bytes,
  read_json,
  write_json,
)
from diffdistill.system.holder import identity, is_dead, named

NAME = "lock.json"
RENEW_SECONDS = 10.0
STALE_SECONDS = 60.0
# Seconds between two looks at a lock; and seconds between two messages of the
# first process to the others, which wait for it.
POLL_SECONDS, WORD_SECONDS = 1.0, 5.0
# In a bucket, two processes may take over an old lock at the same time. After
# this many seconds, the process that wrote last holds it.
SETTLE_SECONDS = 2.0

Say = Callable[[str], None]
# The bytes of a lock file, and the time at which it was written.
Signature = tuple[bytes, int]


class Lock:
  """Takes, renews and releases the lock of a workdir for one process.

  Args:
    workdir: the workdir to lock.
    say: receives a line if the process waits or the lock cannot be renewed.
    end: prints a line and ends the process; only tests pass another function.
  """

  def __init__(
    self, workdir: epath.Path, say: Say, end: Say | None = None
  ) -> None:
    self._workdir, self._path = workdir, workdir / NAME
    self._say, self._end = say, end or _end
    self._fields = {**identity(), "nonce": secrets.token_hex(8)}
    self._count = 0
    self._seen: Signature | None = None
    self._since = 0.0
    self._stop = threading.Event()
    self._thread: threading.Thread | None = None

  def attempt(self, seconds: float, take: bool = True) -> bool:
    """Waits for the lock for some seconds; returns whether it is free or taken.

    Args:
      seconds: the longest wait in this call; the next call continues the wait.
      take: whether to take the lock; if not, only waits until it is free.

    Raises:
      ValueError: if another process holds the lock and is alive.
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
    """Reads the lock file; None if there is no file."""
    local = not in_bucket(self._path)
    try:
      # On a full disk, `_renew` changes only the file's time, so compare it.
      written = os.stat(self._path).st_mtime_ns if local else 0
      return read_bytes(self._path), written
    except FileNotFoundError:
      return None

  def release(self) -> None:
    """Removes the lock file if this process holds the lock."""
    self._stop.set()
    if self._thread is not None:
      self._thread.join(RENEW_SECONDS)
    if not self._count:
      return
    try:
      with _alone(self._workdir):
        if self._holder().get("nonce") == self._fields["nonce"]:
          self._path.unlink(missing_ok=True)
    except Exception as error:
      # A bucket raises errors of many classes. None may hide the first error.
      self._say(f"{self._path} could not be removed ({error})")

  def _is_free(self, seen: Signature | None) -> bool:
    """Returns whether no process holds the lock any more."""
    if seen is None or is_dead(holder := self._holder()):
      return True
    now = time.monotonic()
    if self._seen is None:
      self._seen, self._since = seen, now
      self._say(
        f"waits up to {STALE_SECONDS:g} s: {self._workdir} is held by"
        f" {named(holder)}"
      )
    if seen != self._seen:
      raise ValueError(
        f"{self._workdir} is in use: {named(holder)} trains there; wait until"
        " it ends, or pass another --workdir"
      )
    return now - self._since >= STALE_SECONDS

  def _take(self, seen: Signature | None) -> bool:
    """Writes the lock if the file is unchanged; returns whether it is held."""
    bucket = in_bucket(self._path)
    if not bucket:
      self._workdir.mkdir(parents=True, exist_ok=True)
    with _alone(self._workdir) as alone:
      if self.look() != seen:
        return False
      if bucket and seen is None:
        # A bucket creates an object for one process only.
        alone = self._create()
        if not alone:
          return False
      else:
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
        # Go on, because a bucket or a disk may answer again later.
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
          f"{self._workdir} was taken over by {taken_by}, because this process"
          " did not renew its lock in time; it ends, so that only one trains"
        )
        return
      renewed, said = time.monotonic(), False

  def _renew(self) -> str:
    """Writes the lock again; returns the name of a new holder, or ""."""
    if not in_bucket(self._workdir) and not self._workdir.exists():
      raise FileNotFoundError(errno.ENOENT, "is gone", str(self._workdir))
    with _alone(self._workdir):
      holder = self._holder()
      if holder.get("nonce", self._fields["nonce"]) != self._fields["nonce"]:
        return named(holder)
      if self._stop.is_set():
        return ""
      try:
        self._write()
      except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
          raise
        # Renew only the file's time, which needs no space on the disk.
        os.utime(self._path)
    return ""

  def _create(self) -> bool:
    """Writes a lock that is not there yet; returns whether this succeeds."""
    created = buckets.create(self._path, json_of(self._next()).encode())
    if not created:
      self._count = 0
    return created

  def _write(self) -> None:
    write_json(self._path, self._next(), self._fields["nonce"])

  def _next(self) -> dict[str, Any]:
    """The fields of the lock, which are different each time."""
    self._count += 1
    return {**self._fields, "renewed": self._count}

  def _holder(self) -> dict[str, Any]:
    """Reads the fields of the lock file; {} if it is missing or damaged."""
    try:
      return read_json(self._path)
    except (ValueError, FileNotFoundError):
      return {}


@contextlib.contextmanager
def held(workdir: epath.Path, say: Say) -> Iterator[None]:
  """Holds a workdir's lock inside the `with`. Every process must call it.

  Raises:
    ValueError: if another process holds the lock and is alive.
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
  """Checks that nobody trains in a workdir inside the `with`; takes no lock.

  Raises:
    ValueError: if a training runs there at the start or at the end.
  """
  lock = Lock(workdir, say)
  while not hosts.on_first(lambda: lock.attempt(WORD_SECONDS, take=False)):
    pass
  before = lock.look()
  yield

  def compare() -> None:
    if lock.look() != before:
      raise ValueError(
        f"a training began in {workdir} while this command ran; wait until it"
        " ends, and run the command again"
      )

  hosts.on_first(compare)


@contextlib.contextmanager
def _alone(folder: epath.Path) -> Iterator[bool]:
  """Keeps other processes from looking or writing; yields whether this works.

  A bucket and a network disk without file locks do not allow this.
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


def _end(line: str) -> None:
  """Ends the process at once, because it must not write to the workdir."""
  sys.stderr.write(f"diffdistill: {line}\n")
  sys.stderr.flush()
  os._exit(1)
