"""Ends a run that hangs, so that whoever started it can start it again.

A process that waits in a collective for one that is gone may wait for ever.
"""

import collections
import faulthandler
import os
import sys
import threading
import time
from typing import Protocol, runtime_checkable

STALLED = 70  # EX_SOFTWARE of sysexits.h
# What may compile or read first is given so many times as long.
PATIENCE = 6


@runtime_checkable
class Result(Protocol):
  """An array that a device is to fill."""

  def is_ready(self) -> bool: ...


class Watchdog:
  """Ends the process, with status 70, where nothing is finished for too long.

  It prints the stack of every thread first. From `with` on to its end a thread
  watches, which a main thread that waits for a device leaves free to run.

  Args:
    seconds: between one thing that is finished and the next; 0 for ever.
  """

  def __init__(self, seconds: int | float = 0):
    self._seconds = seconds
    self._allowed, self._since = 0.0, 0.0
    self._running: collections.deque[Result] = collections.deque()
    # Held by whoever decides when the time is up: the watcher, which finds that
    # something is finished, or the main thread, which begins something else.
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
    """Something begins that may compile, or read much, first."""
    with self._lock:
      self._running.clear()
      self._allowed = PATIENCE * self._seconds
      self._since = time.monotonic()

  def alive(self) -> None:
    """Something is finished."""
    with self._lock:
      self._allowed, self._since = self._seconds, time.monotonic()

  def dispatched(self, result: Result) -> None:
    """An update is on its way; it is finished when its result is there.

    Args:
      result: of it, never donated; it is only asked whether it is there.
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
    # By its number: what stands for stderr in a notebook has none.
    faulthandler.dump_traceback(2, all_threads=True)
    sys.stderr.write(
      f"diffdistill: no update finished in {self._allowed:g} s; every"
      " thread stood as above. Start all processes again: the run goes on from"
      " its newest checkpoint (cadence.stall_seconds is how long to wait)\n"
    )
    sys.stderr.flush()
    os._exit(STALLED)
