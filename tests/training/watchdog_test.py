"""Tests that the watchdog ends a run that hangs, but not a slow run."""

import dataclasses
import sys
import threading

import pytest

from diffdistill.training import watchdog
from diffdistill.training.watchdog import PATIENCE, Watchdog
from tests.children import wait_until

# This is the watchdog's limit in seconds. Tests move the clock of the watchdog,
# but its thread looks at the clock four times in these seconds of real time.
SECONDS = 0.04

# In this script the main thread waits for a device forever, as it would in a
# collective operation with a lost process. No signal interrupts the wait.
HUNG = """
import sys, time
import jax
import numpy as np
from diffdistill.training.watchdog import Watchdog

def never(x):
  while True:
    time.sleep(60)

def update(x):
  return jax.pure_callback(never, x, x)

def hang():
  with Watchdog(0.5) as dog:
    dog.alive()
    result = jax.jit(update)(np.float32(1))
    dog.dispatched(result)
    jax.block_until_ready(result)

hang()
"""


class Result:
  """A fake result of an update; a test says when the result is ready."""

  ready = False

  def is_ready(self):
    return self.ready


class Clock:
  """A fake of the watchdog's time.monotonic(), which tests move by hand."""

  def __init__(self):
    self.now, self.looks = 1000.0, 0

  def monotonic(self):
    if threading.current_thread().name == "watchdog":
      self.looks += 1
    return self.now

  def let(self, seconds):
    """Moves the clock, then waits until the watchdog has looked twice."""
    self.now += seconds
    # At each look, the watchdog reads the clock once, and once more for each of
    # four results.
    enough = self.looks + 10
    wait_until(lambda: self.looks > enough)


@pytest.fixture
def clock(monkeypatch):
  made = Clock()
  monkeypatch.setattr(watchdog, "time", made)
  return made


@pytest.fixture
def ended(monkeypatch):
  """Lists the exit statuses with which the watchdog would end the process."""
  statuses = []
  monkeypatch.setattr(Watchdog, "_end", lambda self: statuses.append(70))
  return statuses


def test_a_hung_main_thread_ends_the_process_with_its_stack(children):
  done = children.run(sys.executable, "-c", HUNG)
  assert done.returncode == 70
  assert "in hang" in done.stderr
  assert "Current thread" in done.stderr
  *_, line = done.stderr.splitlines()
  assert line.startswith("diffdistill: no update finished in 0.5 s;")


def test_an_unfinished_update_does_not_restart_the_watchdog(ended, clock):
  slow = Result()
  with Watchdog(SECONDS) as dog:
    dog.alive()
    dog.dispatched(slow)
    clock.let(0.9 * SECONDS)
    assert not ended
    clock.let(0.2 * SECONDS)
    assert ended


def test_each_finished_update_restarts_the_watchdog(ended, clock):
  results = [Result() for _ in range(4)]
  with Watchdog(SECONDS) as dog:
    dog.alive()
    # Dispatch all updates at once, as a loop does that reads no result.
    for result in results:
      dog.dispatched(result)
    for result in results:
      clock.let(0.9 * SECONDS)
      result.ready = True
      clock.let(0)
    assert not ended
    clock.let(1.1 * SECONDS)
    assert ended


def test_an_update_that_may_compile_has_more_time(ended, clock):
  with Watchdog(SECONDS) as dog:
    dog.patience()
    clock.let(0.9 * PATIENCE * SECONDS)
    assert not ended
    dog.alive()
    clock.let(1.1 * SECONDS)
    assert ended


def test_a_watchdog_that_is_off_or_done_ends_no_process(ended):
  with Watchdog(0) as off:
    off.alive()
    off.dispatched(Result())
    assert "watchdog" not in {thread.name for thread in threading.enumerate()}
  with Watchdog(SECONDS):
    assert "watchdog" in {thread.name for thread in threading.enumerate()}
  assert "watchdog" not in {thread.name for thread in threading.enumerate()}
  assert not ended


def test_earlier_updates_do_not_shorten_the_watchdog_s_patience(ended, clock):
  begins = []

  class Main(Watchdog):
    """A watchdog whose main thread asks for patience during a look."""

    def alive(self):
      if not begins:
        begun = threading.Thread(target=self.patience)
        begun.start()
        begins.append(begun)
        # The thread `begun` waits until the watchdog has finished looking.
        begins[0].join(0.1)
      super().alive()

  done = Result()
  done.ready = True
  with Main(SECONDS) as dog:
    dog.dispatched(done)
    wait_until(lambda: begins)
    begins[0].join()
    clock.let(0.9 * PATIENCE * SECONDS)
    assert not ended


def test_the_watchdog_allows_each_function_time_to_compile(
  tiny_config, run_of, tmp_path, monkeypatch
):
  seen = []
  monkeypatch.setattr(Watchdog, "patience", lambda self: seen.append("wait"))
  monkeypatch.setattr(Watchdog, "dispatched", lambda *_: seen.append("call"))
  run = run_of(tiny_config)
  (teacher,) = (s for s in run.built.stages if s.name == "teacher")
  teacher = dataclasses.replace(teacher, num_updates=6, updates_per_call=4)
  run.train(tmp_path, stages=(teacher,), log=4, checkpoint=0)
  # The run makes one call of four updates, and two calls of one update.
  first = seen.index("call")
  assert seen[first - 1 : first + 4] == ["wait", "call", "wait", "call", "call"]
