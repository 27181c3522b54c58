"""Tests the length of a round that ends by the clock, with a fake clock."""

import math

import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from diffdistill.system.files import read_json, write_json
from diffdistill.training.clock import HELD, Clock
from diffdistill.training.optimizers import Optimizer


class Time:
  """A clock that tests move by hand."""

  def __init__(self):
    self.seconds = 1000.0

  def __call__(self):
    return self.seconds


def run(round_dir, seconds, per_update, most=10**6, multiple=1, first=0, **end):
  """Runs a round as the trainer does.

  Args:
    round_dir: the folder of the round.
    seconds: the time limit of the round.
    per_update: a function that gives the seconds of update i.
    most: the most updates of the round.
    multiple: the number of updates in a call.
    first: the first update that this process does.
    end: `crash` ends the round before that update.

  Returns:
    The round's clock, the learning rate of each update, the times at which the
    clock waited for the devices, and the seconds of the round.
  """
  time = Time()
  clock = Clock(epath.Path(round_dir), seconds, most, multiple, time)
  optimizer = Optimizer(learning_rate=1.0, warmup=3, decay="linear")
  rates, step, waits = [], first, []
  while step < clock.last:
    clock.look(step, lambda: waits.append(time.seconds))
    if step >= end.get("crash", math.inf):
      break
    for i in range(step, step + multiple):
      rates.append(optimizer.rate(i, clock.last, clock.held))
      time.seconds += 60.0 if i == first else per_update(i)
    step += multiple
    if step == first + multiple:
      clock.start(step)
  return clock, rates, waits, time.seconds - 1060


def test_a_round_without_a_time_limit_has_its_number_of_updates(tmp_path):
  clock = Clock(epath.Path(tmp_path), 0.0, 7)
  assert (clock.length, clock.last, clock.held) == (7, 7, 0)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seconds", [10.0, 60.0, 600.0])
@pytest.mark.parametrize("per_update", [0.01, 0.3])
def test_a_timed_round_has_as_many_updates_as_fit(
  tmp_path, seconds, per_update
):
  clock, rates, waits, took = run(tmp_path, seconds, lambda i: per_update)
  assert clock.length == len(rates)
  # The time limit does not include the first update, because it compiles.
  assert took == pytest.approx(seconds, abs=2 * per_update)
  assert read_json(tmp_path / "clock.json") == {"num_updates": clock.length}
  # The clock may wait for the devices at most a few dozen times, because each
  # wait makes them idle.
  assert len(waits) <= 4 + math.log2(clock.length)


def test_a_round_has_eight_updates_even_if_one_takes_too_long(tmp_path):
  clock, _, _, _ = run(tmp_path, 5.0, lambda i: 10.0)
  # The round has room for eight updates. The update that compiles and one timed
  # update are already a quarter of the round, in which the learning rate is
  # held.
  assert clock.length == 8


@settings(max_examples=60, deadline=None)
@given(
  seconds=st.floats(0.5, 100),
  times=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=40),
  most=st.integers(1, 5000),
  multiple=st.sampled_from([1, 2, 10]),
)
def test_the_learning_rate_depends_only_on_the_length_of_a_round(
  tmp_path_factory, seconds, times, most, multiple
):
  """The rate is constant for a quarter of the round, then falls to 0."""
  most *= multiple
  clock, rates, _, _ = run(
    tmp_path_factory.mktemp("round"),
    seconds,
    lambda i: times[i % len(times)],
    most,
    multiple,
  )
  length = clock.length
  assert length == len(rates) <= most
  assert length % multiple == 0
  start = math.ceil(HELD * length)
  for i, rate in enumerate(rates):
    warm = min((min(i, start - 1) + 1) / 3, 1)
    decay = 1 - max(i - start, 0) / max(length - start, 1)
    assert rate == pytest.approx(warm * decay, abs=1e-12)
  # At the end of the round, the learning rate is close to 0.
  if length > 3:
    assert rates[-1] <= max(rates) / (length - start) + 1e-12


@pytest.mark.parametrize("crash", [1, 20, 199, 200, 201, 500, 999])
def test_a_killed_round_keeps_its_settled_length(tmp_path, crash):
  """After the kill, the machine is ten times slower."""
  clock, before, _, _ = run(tmp_path, 10.0, lambda i: 0.01, crash=crash)
  settled = clock.length
  again, after, _, _ = run(tmp_path, 10.0, lambda i: 0.1, first=crash)
  if settled is not None:
    assert again.length == settled == pytest.approx(1000, abs=2)
  else:
    assert again.length == pytest.approx(max(100, 4 * crash), abs=8)
  length, rates = again.length, before + after
  assert len(rates) == length
  start = math.ceil(HELD * length)
  expected = [1 - max(i - start, 0) / (length - start) for i in range(length)]
  np.testing.assert_allclose(rates[3:], expected[3:])


def test_a_timed_round_has_at_most_its_number_of_updates(tmp_path):
  clock, rates, _, took = run(tmp_path, 100.0, lambda i: 0.01, most=400)
  assert clock.length == len(rates) == 400
  assert took < 5


def test_a_long_warm_up_ends_when_the_anneal_begins(tmp_path):
  """The machine is so slow that the round would end before the warm-up does."""
  write_json(tmp_path / "clock.json", {"num_updates": 100})
  clock = Clock(epath.Path(tmp_path), 100.0, 10**6, 1, Time())
  optimizer = Optimizer(learning_rate=1.0, warmup=1000, decay="linear")
  rates = [optimizer.rate(i, clock.last, clock.held) for i in range(100)]
  np.testing.assert_allclose(rates[:25], np.arange(1, 26) / 1000)
  np.testing.assert_allclose(rates[25:], 0.025 * (1 - np.arange(75) / 75))


def test_skipped_seconds_do_not_shorten_a_round(tmp_path):
  """Each of two scores takes as long as a hundred updates."""
  time = Time()
  clock = Clock(epath.Path(tmp_path), 10.0, 10**6, 1, time)
  clock.start(1)
  step = 1
  while clock.length is None:
    if step in (20, 110):
      time.seconds += 1.0
      clock.skip(1.0)
    clock.look(step, lambda: None)
    # Every twentieth update takes longer, because it reads a file.
    time.seconds += 0.03 if step % 20 == 0 else 0.01
    step += 1
  assert clock.length == pytest.approx(10 / 0.011, rel=0.02)


def test_the_time_left_follows_from_the_speed(tmp_path):
  clock, _, _, _ = run(tmp_path, 10.0, lambda i: 0.01, crash=300)
  assert clock.left(300, 50.0) == pytest.approx(14.0, rel=0.01)
  assert clock.left(300, 0.0) == 10.0
  assert clock.left(2000, 50.0) == 0


@pytest.mark.parametrize("text", ["", "{}", '{"num_updates": 5}', "[]"])
def test_a_damaged_record_is_refused(tmp_path, text):
  (tmp_path / "clock.json").write_text(text)
  with pytest.raises(ValueError, match=r"is damaged.*; restore it, or remove"):
    Clock(epath.Path(tmp_path), 1.0, 100)


@pytest.mark.parametrize("fields", [{}, {"num_updates": "5"}])
def test_a_record_without_a_length_is_refused(tmp_path, fields):
  write_json(tmp_path / "clock.json", fields)
  with pytest.raises(ValueError, match="does not say num_updates; restore it"):
    Clock(epath.Path(tmp_path), 1.0, 100)
