"""Ends a run that hangs, so that a scheduler can start it again.

A process that waits in a collective for a lost process may wait for ever.
"""

import collections
import faulthandler
import os
import sys
import threading
import time
from typing import Protocol, runtime_checkable

STALLED = 70  # EX_SOFTWARE of sysexits.h
# An update that compiles or reads first may take so many times as long.
PATIENCE = 6


@runtime_checkable
class Result(Protocol):
  """An array that a device is to fill."""

  def is_ready(self) -> bool: ...


class Watchdog:
  """Ends the process with status 70 if no update is finished for too long.

  It prints the stack of every thread first. Inside the `with` block a thread
  watches; it runs while the main thread waits for a device.

  Args:
    seconds: the longest time between two finished updates; 0 for no limit.
  """

  def __init__(self, seconds: int | float = 0):
    self._seconds = seconds
    self._allowed, self._since = 0.0, 0.0
    self._running: collections.deque[Result] = collections.deque()
    # Held while the deadline changes: by the watching thread, when an update is
    # finished, or by the main thread, when it begins something else.
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
    """Notes that work begins which may compile or read much first."""
    with self._lock:
      self._running.clear()
      self._allowed = PATIENCE * self._seconds
      self._since = time.monotonic()

  def alive(self) -> None:
    """Notes that some work is finished."""
    with self._lock:
      self._allowed, self._since = self._seconds, time.monotonic()

  def dispatched(self, result: Result) -> None:
    """Notes that an update is dispatched; it ends when its result is ready.

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
    # Use the number of stderr, because in a notebook sys.stderr has none.
    faulthandler.dump_traceback(2, all_threads=True)
    sys.stderr.write(
      f"diffdistill: no update finished in {self._allowed:g} s; every"
      " thread stood as above. Start all processes again: the run goes on from"
      " its newest checkpoint (cadence.stall_seconds is how long to wait)\n"
    )
    sys.stderr.flush()
    os._exit(STALLED)
