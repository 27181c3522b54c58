"""Tests stages that end by the clock; each update is one tick of the clock."""

import copy
import dataclasses
import json

import pytest
from etils import epath

from diffdistill.run import from_config
from diffdistill.run.teacher_pairs import pair_store
from diffdistill.system.files import read_json
from diffdistill.training.selection_by_score import Selection

ROUNDS = ("teacher", "halve/004", "halve/002", "halve/001")


class Clock:
  """A clock on which time passes only by ticks."""

  def __init__(self, seconds=0.125):
    self._seconds, self._now = seconds, 5000.0

  def __call__(self):
    return self._now

  def tick(self, times=1):
    self._now += self._seconds * times


@pytest.fixture(scope="module")
def config(tiny_config):
  """A config with 6 seconds for the teacher and 12 for the students."""
  config = copy.deepcopy(tiny_config)
  for name, minutes in (("teacher", 0.1), ("halve", 0.2)):
    config["stages"][name] |= {"minutes": minutes, "num_updates": 500}
  config["stages"]["halve"]["long_rounds"] = 2
  config["cadence"] = {"log": 8, "checkpoint": 5}
  return config


@pytest.fixture(scope="module")
def run(config, run_of):
  return run_of(config)


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("finished")
  run.train(workdir, clock=Clock())
  return workdir


def lengths(workdir):
  return {
    name: json.loads((workdir / name / "clock.json").read_text())["num_updates"]
    for name in ROUNDS
    if (workdir / name / "clock.json").exists()
  }


def test_timed_rounds_have_as_many_updates_as_fit(finished, records_of):
  # The run does 8 updates a second. Each of the two long rounds gets two fifths
  # of the time, and the short round gets one fifth.
  assert lengths(finished) == {
    "teacher": 48,
    "halve/004": 20,
    "halve/002": 39,
    "halve/001": 39,
  }
  last = {record["round"]: record for record in records_of(finished)}
  for name, length in lengths(finished).items():
    assert last[name]["step"] == length
    assert last[name]["learning_rate"] < 1e-2 / (0.7 * length)
    assert last[name]["images"] == 8 * length


def test_a_round_says_how_many_updates_fit_and_whether_they_are_enough(
  config, run_of, tmp_path, capfd
):
  config = copy.deepcopy(config)
  config["stages"]["teacher"]["enough_updates"] = 100
  config["stages"]["halve"]["enough_updates"] = 20
  run = run_of(config)
  run.train(tmp_path, clock=Clock(), stages=run.built.stages[:2])
  said = [
    line for line in capfd.readouterr().err.splitlines() if " fit " in line
  ]
  assert said[0] == (
    "teacher: 48 updates fit into its 0.1 minutes, but good images need 100 or"
    " more; pass 2.1 times the minutes in a new --workdir, or give the run more"
    " of this machine"
  )
  assert said[1] == "halve/004: 20 updates fit into its 0.04 minutes"
  assert len(said) == 4


@pytest.mark.parametrize(
  "speed", [pytest.param(0.125, marks=pytest.mark.slow), 0.01]
)
def test_a_timed_run_killed_anywhere_makes_the_same_weights(
  finished, run, tmp_path, speed
):
  """The weights are the same at another speed too, once the length is fixed."""
  clock = Clock()
  # Crash before, at and after the update at which a length is fixed (update 10
  # of 48, and 4 of 20), and around checkpoints.
  for life in (3, 8, 3, 0, 9, 30, 1, 4):
    run.crash(tmp_path, life, clock=clock)
    if lengths(tmp_path):
      clock = Clock(speed)
  if speed == 0.125:
    run.train(tmp_path, clock=clock)
    run.assert_same_weights(tmp_path, finished)
  else:
    run.train(tmp_path, clock=clock, stages=run.built.stages[:1])
    made, wanted = run.products(tmp_path), run.products(finished)
    for name in ("teacher teacher", "teacher second_moments"):
      assert str(made[name]) == str(wanted[name])


@pytest.mark.slow
def test_a_recorded_length_makes_the_same_weights_at_any_speed(
  finished, run, tmp_path
):
  """The file clock.json has the lengths, so the speed does not matter."""
  for name in ROUNDS:
    (tmp_path / name).mkdir(parents=True)
    record = (finished / name / "clock.json").read_bytes()
    (tmp_path / name / "clock.json").write_bytes(record)
  run.train(tmp_path, clock=Clock(7.0))
  run.assert_same_weights(tmp_path, finished)


def test_num_updates_limits_a_round_that_the_clock_ends(run, tmp_path):
  (teacher, _) = run.built.stages
  short = dataclasses.replace(teacher, num_updates=18)
  run.train(tmp_path / "both", clock=Clock(), stages=(short,))
  assert lengths(tmp_path / "both") == {"teacher": 18}


def test_a_timed_round_has_whole_calls(run, tmp_path):
  (teacher, _) = run.built.stages
  calls = dataclasses.replace(teacher, updates_per_call=4)
  clock = Clock(0.51)  # Each call is one tick, not each update.
  run.train(tmp_path, clock=clock, stages=(calls,), log=8, checkpoint=8)
  assert lengths(tmp_path) == {"teacher": 48}


def test_the_time_of_scores_and_pictures_does_not_count(run, tmp_path):
  clock = Clock()
  (teacher, _) = run.built.stages
  select = Selection(by="distance", every=5)
  stages = (dataclasses.replace(teacher, select=select),)

  def distance(*_):
    clock.tick(100)
    return 1.0

  def observe(*_):
    clock.tick(100)

  run.train(
    tmp_path,
    clock=clock,
    stages=stages,
    distance=distance,
    observe=observe,
  )
  assert lengths(tmp_path) == {"teacher": 48}


@pytest.mark.slow
def test_as_many_shards_of_pairs_are_made_as_fit(
  pairs_config, run_of, tmp_path, crash_error
):
  """In the given time, the run makes 2 of 4 shards and the held-out shards."""
  config = copy.deepcopy(pairs_config)
  config["stages"]["pairs"]["minutes"] = 0.55
  run, clock = run_of(config), Clock(1.0)
  drawn = []

  def pairs(*arguments):
    store = pair_store(run.built, epath.Path(tmp_path), *arguments)

    def draw(first, count):
      if len(drawn) == 2:
        drawn.append(None)
        raise crash_error
      drawn.append(first)
      clock.tick(count)
      return store.draw(first, count)

    return dataclasses.replace(store, draw=draw)

  # 33 seconds are enough for 16 held-out pairs and two shards of 8 pairs, at a
  # second for each pair. The first draw only compiles. The run crashes in the
  # second shard.
  run.crash(tmp_path, clock=clock, pairs=pairs)
  assert drawn == [0, 0, None]
  record = read_json(tmp_path / "pairs" / "clock.json")
  assert record == {"num_shards": 2}
  run.train(tmp_path, clock=clock, pairs=pairs)
  assert drawn[3:] == [0, 8, 32, 40]
  made = sorted(p.name for p in (tmp_path / "pairs" / "pairs").glob("*.npz"))
  assert made == ["00000.npz", "00001.npz", "00004.npz", "00005.npz"]


@pytest.mark.slow
def test_the_time_of_making_lost_pairs_again_does_not_count(
  pairs_config, run_of, records_of, tmp_path
):
  config = copy.deepcopy(pairs_config)
  config["stages"]["student"] |= {"minutes": 0.1, "num_updates": 500}
  config["cadence"] = {"log": 8, "checkpoint": 5}
  run, clock = run_of(config), Clock()

  def pairs(*arguments):
    store = pair_store(run.built, epath.Path(tmp_path), *arguments)

    def draw(first, count):
      clock.tick(100)
      return store.draw(first, count)

    return dataclasses.replace(store, draw=draw)

  def left_behind():
    for path in (tmp_path / "pairs" / "pairs").glob("*.npz"):
      path.unlink()

  def lines(name):
    return [r for r in records_of(tmp_path) if r["round"] == name]

  # Crash before the student's first update, before its length is fixed, and
  # when three updates are left. Each crash comes in another shard of pairs.
  for life in (6, 7, 40):
    run.crash(tmp_path, life, clock=clock, pairs=pairs)
    left_behind()
  run.train(tmp_path, clock=clock, pairs=pairs)
  made = {p.stem for p in (tmp_path / "pairs" / "pairs").glob("*.npz")}
  assert len(made) == 3 + 2
  assert {"00004", "00005"} < made
  record = read_json(tmp_path / "student" / "001" / "clock.json")
  assert record == {"num_updates": 48}
  # The records of the pairs have these seconds. Compiling has a field of its
  # own there.
  first, *again = lines("pairs")
  assert first["passes"] == 4 * (32 + 16)
  assert [record["step"] for record in again] == [0, 0, 0]
  for record in again:
    assert "passes" not in record
    apart = record["compile_seconds"] + record["again_seconds"]
    assert record["seconds"] == pytest.approx(apart, abs=2e-3)
    assert min(record["compile_seconds"], record["again_seconds"]) > 0
  assert 0 < first["compile_seconds"] < first["seconds"]


@pytest.mark.parametrize(
  ("stage", "fields", "message"),
  [
    ("teacher", {"minutes": -1.0}, "teacher.minutes is -1.0; pass 0 or more"),
    ("teacher", {"minutes": float("nan")}, "teacher.minutes is nan; pass 0"),
    (
      "teacher",
      {"enough_updates": 5},
      "teacher.enough_updates is 5, which only a stage of some minutes uses",
    ),
    ("pairs", {"minutes": -1.0}, "minutes is -1.0; pass 0 or more"),
    ("pairs", {"minutes": float("inf")}, "minutes is inf; pass 0 or more"),
    (
      "pairs",
      {"minutes": 1.0, "max_gigabytes": 1.0},
      "minutes is 1.0 and max_gigabytes 1.0, but how many pairs there will be",
    ),
  ],
)
def test_impossible_fields_of_a_timed_stage_are_refused(
  pairs_config, stage, fields, message
):
  config = copy.deepcopy(pairs_config)
  config["stages"][stage] |= fields
  with pytest.raises(ValueError, match=message):
    from_config.build(config)


def test_a_rolling_pool_for_a_timed_student_is_refused(pairs_config):
  config = copy.deepcopy(pairs_config)
  config["stages"]["pairs"]["max_gigabytes"] = 1.0
  config["stages"]["student"]["minutes"] = 1.0
  with pytest.raises(
    ValueError, match="over how many updates the rolling pool"
  ):
    from_config.build(config)
