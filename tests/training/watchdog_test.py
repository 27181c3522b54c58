"""A run that hangs ends by itself, and one that is slow does not."""

import dataclasses
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from diffdistill.training.watchdog import PATIENCE, Watchdog

# The main thread waits for a device, as in a collective of which one process is
# gone, and there is no signal to wake it.
HUNG = """
import sys, time
import jax
import numpy as np
from diffdistill.training.watchdog import Watchdog

def never(x):
  time.sleep(1000)

def update(x):
  return jax.pure_callback(never, x, x)

def hang():
  with Watchdog(0.5) as watchdog:
    watchdog.alive()
    result = jax.jit(update)(np.float32(1))
    watchdog.dispatched(result)
    jax.block_until_ready(result)

hang()
"""


class Result:
  """An array of an update that is there when it is told."""

  ready = False

  def is_ready(self):
    return self.ready


@pytest.fixture
def ended(monkeypatch):
  """The statuses that processes ended with."""
  statuses = []
  monkeypatch.setattr(Watchdog, "_end", lambda self: statuses.append(70))
  return statuses


def test_a_hung_main_thread_ends_the_process_with_its_stack():
  start = time.monotonic()
  done = subprocess.run(
    [sys.executable, "-c", HUNG], capture_output=True, text=True, check=False
  )
  assert done.returncode == 70
  assert time.monotonic() - start < 60
  assert "in hang" in done.stderr
  assert "Current thread" in done.stderr
  *_, line = done.stderr.splitlines()
  assert line.startswith("diffdistill: no update finished in 0.5 s;")


def test_an_update_that_is_not_finished_is_no_sign_of_life(ended):
  slow = Result()
  with Watchdog(0.2) as watchdog:
    watchdog.alive()
    watchdog.dispatched(slow)
    while not ended:
      time.sleep(0.01)


def test_updates_that_finish_one_by_one_are(ended):
  results = [Result() for _ in range(4)]
  with Watchdog(2) as watchdog:
    watchdog.alive()
    # All at once on their way, as a loop that reads nothing has them.
    for result in results:
      watchdog.dispatched(result)
    for result in results:
      time.sleep(0.6)
      result.ready = True
  assert not ended


def test_what_may_compile_has_more_time(ended):
  with Watchdog(0.5) as watchdog:
    watchdog.patience()
    time.sleep(0.5 * PATIENCE / 2)
    assert not ended
    assert list(watchdog.each(np.arange(3))) == [0, 1, 2]
    while not ended:
      time.sleep(0.01)


def test_a_watchdog_that_is_off_or_done_ends_nothing(ended):
  with Watchdog(0) as off:
    off.alive()
    off.dispatched(Result())
  with Watchdog(0.1):
    pass
  time.sleep(0.4)
  assert not ended


def test_patience_is_not_undone_by_what_was_finished_before(ended):
  begins = []

  class Main(Watchdog):
    """Its main thread begins something just as the watcher sees an end."""

    def alive(self):
      if not begins:
        begins.append(threading.Thread(target=self.patience))
        begins[0].start()
        begins[0].join(0.1)
      super().alive()

  done = Result()
  done.ready = True
  with Main(0.3) as watchdog:
    watchdog.dispatched(done)
    while not begins:
      time.sleep(0.01)
    time.sleep(0.9)
    assert not ended


def test_each_function_has_its_time_to_compile(
  tiny_config, run_of, tmp_path, monkeypatch
):
  seen = []
  monkeypatch.setattr(Watchdog, "patience", lambda self: seen.append("wait"))
  monkeypatch.setattr(Watchdog, "dispatched", lambda *_: seen.append("call"))
  run = run_of(tiny_config)
  (teacher,) = (s for s in run.built.stages if s.name == "teacher")
  teacher = dataclasses.replace(teacher, num_updates=6, updates_per_call=4)
  run.train(tmp_path, stages=(teacher,), log=4, checkpoint=0)
  # Four updates at once, and the last two one by one.
  first = seen.index("call")
  assert seen[first - 1 : first + 4] == ["wait", "call", "wait", "call", "call"]
