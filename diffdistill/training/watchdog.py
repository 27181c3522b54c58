"""Ends a run that hangs, so that a scheduler can start it again.

A process that waits in a collective operation for a lost process may wait
forever.
"""

import collections
import faulthandler
import os
import sys
import threading
import time
from typing import Protocol, runtime_checkable

STALLED = 70  # The exit status EX_SOFTWARE of sysexits.h.
# An update that first compiles or reads data may take this many times as long
# as others.
PATIENCE = 6


@runtime_checkable
class Result(Protocol):
  """An array that a device has not computed yet."""

  def is_ready(self) -> bool: ...


class Watchdog:
  """Ends the process with status 70 if no update is finished for too long.

  It first prints the stack of every thread. A thread watches inside the `with`
  block; it runs while the main thread waits for a device.

  Args:
    seconds: the longest time between two finished updates; 0 for no limit.
  """

  def __init__(self, seconds: int | float = 0):
    self._seconds = seconds
    self._allowed, self._since = 0.0, 0.0
    self._running: collections.deque[Result] = collections.deque()
    # A thread holds this lock while it changes the deadline. The watching
    # thread changes the deadline when an update is finished, and the main
    # thread changes it when it begins other work.
    self._lock = threading.RLock()
    self._stop = threading.Event()
    self._thread: threading.Thread | None = None

  def __enter__(self) -> "Watchdog":
    self.patience()
    if self._seconds:
      self._thread = threading.Thread(
        target=self._watch, name="watchdog", daemon=True
      )
      self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    self._stop.set()
    if self._thread is not None:
      self._thread.join()

  def patience(self) -> None:
    """Notes that the next update may first compile, or read much data."""
    with self._lock:
      self._running.clear()
      self._allowed = PATIENCE * self._seconds
      self._since = time.monotonic()

  def alive(self) -> None:
    """Notes that some work is finished, so the run does not count as hung."""
    with self._lock:
      self._allowed, self._since = self._seconds, time.monotonic()

  def dispatched(self, result: Result) -> None:
    """Notes that an update was sent to the device; it is done with `result`.

    Args:
      result: an array of the update that is never donated.
    """
    if self._thread is not None:
      self._running.append(result)

  def _watch(self) -> None:
    while not self._stop.wait(min(1, self._seconds / 4)):
      with self._lock:
        while self._running and self._running[0].is_ready():
          self._running.popleft()
          self.alive()
        if time.monotonic() > self._since + self._allowed:
          self._end()

  def _end(self) -> None:
    # Write to file descriptor 2, because sys.stderr has no descriptor in a
    # notebook.
    faulthandler.dump_traceback(2, all_threads=True)
    sys.stderr.write(
      f"diffdistill: no update finished in {self._allowed:g} s; every"
      " thread stood as above. Start all processes again: the run goes on from"
      " its newest checkpoint (cadence.stall_seconds is how long to wait)\n"
    )
    sys.stderr.flush()
    os._exit(STALLED)
