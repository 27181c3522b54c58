"""Tests that a run makes all its rounds, and that interruptions change nothing.

The runs are in one process, on one device, and share compiled functions
(conftest.py). killed_test.py tests runs that continue in a new process.
"""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from etils import epath

from diffdistill.training import checkpoint
from diffdistill.training.cadence import Cadence
from diffdistill.training.non_finite import TrainingStoppedError
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.sharding import Layout

ROUNDS = ("teacher", "halve/004", "halve/002", "halve/001")
UPDATES = 18


@pytest.fixture(scope="module")
def run(tiny_config, run_of):
  return run_of(tiny_config)


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
  """Trains without interruptions.

  Gives (workdir, the arguments that `observe` got).
  """
  workdir, seen = tmp_path_factory.mktemp("finished"), []

  def observe(stage, round_, params, step):
    seen.append((stage.name, round_.name, step, jax.device_get(params)))

  run.train(workdir, observe=observe)
  return workdir, seen


def product_of(name):
  return f"{name} {'teacher' if name == 'teacher' else 'student'}"


def test_a_run_makes_every_round_and_leaves_only_results(finished, run):
  workdir, _ = finished
  for name in ROUNDS:
    made = {path.name for path in (workdir / name).iterdir()}
    assert made == {"final", "final.json"}
  products = run.products(workdir)
  # The round keeps Adam's second moments too, because some objectives need
  # them.
  assert list(products) == ["teacher second_moments", *map(product_of, ROUNDS)]
  trees = list(products.values())
  leaves = [
    np.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in trees
  ]
  for a, b in itertools.combinations(leaves, 2):
    assert np.abs(a - b).max() > 1e-4


def test_each_update_is_compiled_once_for_all_rounds(finished, run):
  for functions in run.functions.values():
    for update in functions.updates.values():
      assert update._cache_size() == 1
    assert functions.init._cache_size() == 1


def test_records_come_at_the_cadence_and_at_the_end(finished, records_of):
  records = records_of(finished[0])
  steps = [(r["round"], r["step"]) for r in records]
  assert steps == [
    (name, step) for name in ROUNDS for step in (4, 8, 12, 16, UPDATES)
  ]
  for record in records:
    assert record["images"] == 8 * record["step"]
    assert record["images_per_second"] > 0
    assert record["seconds"] > 0
    # A gradient counts as three passes. For a student, its teacher makes two
    # more passes.
    per_image = 3 if record["round"] == "teacher" else 5
    assert record["passes"] == per_image * record["images"]
  # Only the first record of a start has the seconds to its first update.
  waits = [r.get("first_update_seconds") for r in records]
  assert waits[0] > records[0]["compile_seconds"] - 1
  assert not any(waits[1:])
  last = records[-1]
  assert last["learning_rate"] == pytest.approx(1e-2 / UPDATES)
  assert {"student/loss", "student/grad_norm", "student/skipped"} <= set(last)


def test_products_are_observed_at_the_end_of_each_round(finished, run):
  workdir, seen = finished
  assert [s[:3] for s in seen] == [
    (name.split("/")[0], name, UPDATES) for name in ROUNDS
  ]
  # `observe` must get the weights that the rounds keep, such as the teacher's
  # average.
  products = run.products(workdir)
  for _, name, _, shown in seen:
    kept = products[product_of(name)]
    jax.tree.map(np.testing.assert_array_equal, shown, kept)


def test_products_are_observed_at_the_cadence(run, tmp_path):
  seen = []

  def observe(stage, round_, params, step):
    seen.append((round_.name, step))

  teacher = run.built.stages[:1]
  built = dataclasses.replace(
    run.built, cadence=dataclasses.replace(run.built.cadence, observe=8)
  )
  dataclasses.replace(run, built=built).train(
    tmp_path, observe=observe, stages=teacher
  )
  assert seen == [("teacher", 8), ("teacher", 16), ("teacher", UPDATES)]


def test_a_finished_run_is_not_changed(finished, run):
  workdir, _ = finished

  def snapshot():
    return {
      path: (path.stat().st_mtime_ns, path.stat().st_size)
      for path in workdir.rglob("*")
    }

  before = snapshot()
  run.train(workdir, updates=0)
  assert snapshot() == before


# The run crashes at the beginning, in the middle and at the end of rounds,
# before and after a checkpoint (every 5th update), and twice at the same
# update.
def test_an_interrupted_run_makes_the_same_weights(finished, run, tmp_path):
  for life in (3, 6, 11, 4, 17, 18, 19, 0, 2):
    run.crash(tmp_path, life)
  run.train(tmp_path)
  run.assert_same(tmp_path, finished[0])


def test_a_run_continues_from_its_newest_checkpoint(run, tmp_path, capsys):
  run.crash(tmp_path, 17)
  capsys.readouterr()
  # The newest checkpoint is of update 15, so exactly three updates are left.
  run.train(tmp_path, UPDATES - 15, stages=run.built.stages[:1])
  assert "teacher: goes on from update 15\n" in capsys.readouterr().err


@pytest.mark.slow
def test_a_crash_at_a_round_s_end_changes_nothing(
  finished, run, tmp_path, monkeypatch, crash_error
):
  def crash(*_):
    raise crash_error

  def crash_here(round_dir):
    if str(round_dir).endswith(ROUNDS[crashes]):
      raise crash_error

  for crashes in range(2):
    # Crash after the last update, before the final result is written.
    with monkeypatch.context() as patch:
      patch.setattr(checkpoint, "save_final", crash)
      run.crash(tmp_path)
    assert not checkpoint.has_final(epath.Path(tmp_path) / ROUNDS[crashes])
    # Crash after the final result is written, before the checkpoints are
    # removed.
    with monkeypatch.context() as patch:
      patch.setattr(checkpoint, "discard", crash_here)
      run.crash(tmp_path)
    assert checkpoint.has_final(epath.Path(tmp_path) / ROUNDS[crashes])
  # Crash while the picture of the final result is drawn.
  run.crash(tmp_path, observe=crash)
  assert checkpoint.has_final(epath.Path(tmp_path) / ROUNDS[2])
  run.train(tmp_path)
  run.assert_same(tmp_path, finished[0])


def test_finished_rounds_are_not_made_again(run, tmp_path):
  run.crash(tmp_path, UPDATES + 7)
  before = {
    path: path.stat().st_mtime_ns for path in (tmp_path / "teacher").rglob("*")
  }
  run.crash(tmp_path, 3)
  assert before == {
    path: path.stat().st_mtime_ns for path in (tmp_path / "teacher").rglob("*")
  }


@pytest.mark.slow
def test_a_run_continues_on_another_mesh(finished, run, tmp_path, mesh_of):
  run.crash(tmp_path, 12)
  other = dataclasses.replace(run.built, layout=Layout(mesh=mesh_of(2, 4)))
  elsewhere = dataclasses.replace(run, built=other, functions={})
  elsewhere.train(tmp_path, stages=run.built.stages[:1])
  expected, actual = (
    checkpoint.load_final(
      epath.Path(folder) / "teacher", "teacher", run.built.layout
    )
    for folder in (finished[0], tmp_path)
  )
  # The weights are equal up to rounding only, because sums over 8 devices add
  # the same numbers in another order.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), expected, actual
  )


def test_a_run_that_diverges_stops_with_a_message(run, tmp_path):
  # Each update multiplies the weights by -999, so that they become infinite.
  optimizer = Optimizer(learning_rate=10.0, weight_decay=100.0, ema_decay=0.9)
  (teacher, _) = run.built.stages
  stages = (dataclasses.replace(teacher, optimizer=optimizer),)
  with pytest.raises(
    TrainingStoppedError,
    match="teacher stopped at update 8: the last 6 updates had gradients that"
    " are not finite; lower the learning rate",
  ) as error:
    run.train(tmp_path, stages=stages, max_skipped=3)
  assert "\n" not in str(error.value)
  assert not checkpoint.has_final(epath.Path(tmp_path) / "teacher")


def test_a_batch_that_the_devices_do_not_divide_is_refused(run, mesh_of):
  built = dataclasses.replace(run.built, layout=Layout(mesh=mesh_of(3)))
  with pytest.raises(
    ValueError, match=r"teacher\.batch_size is 8, which the 3 devices do not"
  ):
    dataclasses.replace(run, built=built).train("unused")


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"checkpoint": -1}, "cadence.checkpoint is -1; pass 0 or more"),
    ({"log": 0}, "cadence.log is 0"),
    ({"keep": 0}, "cadence.keep is 0; pass 1"),
    ({"stall_seconds": -1}, "cadence.stall_seconds is -1; pass 0 or more"),
  ],
)
def test_a_cadence_out_of_range_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    Cadence(**fields)
