"""In one process: what a run makes, and that an interruption changes nothing.

Runs share their compiled functions (the `run` fixture), on one device; fresh
processes are the business of killed_test.py.
"""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from etils import epath

from diffdistill import experiment
from diffdistill.training import checkpoint
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.trainer import (
  Cadence,
  Trainer,
  TrainingStoppedError,
)

ROUNDS = ("teacher", "halve/004", "halve/002", "halve/001")
UPDATES = 18


class CrashError(Exception):
  """What kills a run in these tests."""


class Crashing:
  """Batches of pipelines, until `left` of them have been taken in all."""

  def __init__(self, batches, left):
    self.batches, self.left = batches, left

  def __call__(self, batch_size, seed):
    self.pipeline = self.batches(batch_size, seed)
    return self

  def iterate(self, start):
    for batch in self.pipeline.iterate(start):
      if self.left == 0:
        raise CrashError
      self.left -= 1
      yield batch


@dataclasses.dataclass(frozen=True)
class Run:
  """The tiny run on one device."""

  built: experiment.Experiment
  functions: dict

  def train(
    self, workdir, show=lambda *_: None, batches=None, stages=None, **cadence
  ):
    functions = self.functions

    class Warm(Trainer):
      """Compiles once for all runs."""

      def compile(self, stage, frozen, report):
        key = stage.name, stage.optimizer.ema_decay
        if key not in functions:
          functions[key] = super().compile(stage, frozen, report)
        return functions[key]

    Warm(
      stages=stages or self.built.stages,
      workdir=epath.Path(workdir),
      seed=self.built.seed,
      batches=batches or self.built.batches,
      mesh=self.built.mesh,
      cadence=dataclasses.replace(self.built.cadence, **cadence),
      observe=show,
    ).run()


@pytest.fixture(scope="module")
def run(tiny_config, mesh_of):
  built = experiment.build(tiny_config)
  return Run(dataclasses.replace(built, mesh=mesh_of(1)), {})


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
  """(workdir of a run that nothing interrupted, what `observe` saw)."""
  workdir, seen = tmp_path_factory.mktemp("finished"), []

  def observe(stage, round_, params, step):
    seen.append((stage.name, round_.name, step, jax.device_get(params)))

  run.train(workdir, observe)
  return workdir, seen


def products(workdir, mesh):
  return {
    name: jax.device_get(
      checkpoint.load_final(
        epath.Path(workdir) / name,
        "teacher" if name == "teacher" else "student",
        mesh,
      )
    )
    for name in ROUNDS
  }


def assert_same_products(workdir, finished, mesh):
  expected, actual = products(finished[0], mesh), products(workdir, mesh)
  assert jax.tree.structure(expected) == jax.tree.structure(actual)
  for (path, a), b in zip(
    jax.tree.leaves_with_path(expected), jax.tree.leaves(actual), strict=True
  ):
    assert np.array_equal(a, b), path


def records(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_a_run_makes_every_round_and_tidies_up(finished, run):
  workdir, _ = finished
  for name in ROUNDS:
    assert [path.name for path in (workdir / name).iterdir()] == ["final"]
  trees = list(products(workdir, run.built.mesh).values())
  leaves = [
    np.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in trees
  ]
  for a, b in itertools.combinations(leaves, 2):
    assert np.abs(a - b).max() > 1e-4


def test_one_compilation_serves_all_rounds(finished, run):
  for functions in run.functions.values():
    for update in functions.updates.values():
      assert update._cache_size() == 1
    assert functions.init._cache_size() == 1


def test_records_come_at_the_cadence_and_at_the_end(finished):
  workdir, _ = finished
  steps = [(r["round"], r["step"]) for r in records(workdir)]
  assert steps == [
    (name, step) for name in ROUNDS for step in (4, 8, 12, 16, UPDATES)
  ]
  for record in records(workdir):
    assert record["images"] == 8 * record["step"]
    assert record["images_per_second"] > 0
  last = records(workdir)[-1]
  assert last["learning_rate"] == pytest.approx(1e-2 / UPDATES)
  assert {"student/loss", "student/grad_norm", "student/skipped"} <= set(last)


def test_products_are_shown_at_the_end_of_each_round(finished, run):
  workdir, seen = finished
  assert [s[:3] for s in seen] == [
    (name.split("/")[0], name, UPDATES) for name in ROUNDS
  ]
  # The average of the teacher, which is what is kept.
  for shown, kept in zip(
    seen, products(workdir, run.built.mesh).values(), strict=True
  ):
    jax.tree.map(np.testing.assert_array_equal, shown[3], kept)


def test_products_are_shown_at_the_cadence_before_the_update(run, tmp_path):
  seen = []

  def observe(stage, round_, params, step):
    seen.append((round_.name, step))

  run.train(tmp_path, observe, stages=run.built.stages[:1], observe=8)
  assert seen == [("teacher", 8), ("teacher", 16), ("teacher", UPDATES)]


def test_a_finished_run_is_left_as_it_is(finished, run):
  workdir, _ = finished

  def snapshot():
    return {
      path: (path.stat().st_mtime_ns, path.stat().st_size)
      for path in workdir.rglob("*")
    }

  before = snapshot()
  run.train(workdir, batches=Crashing(run.built.batches, 0))
  assert snapshot() == before


# Updates between crashes: at the beginning, in the middle and at the end of
# rounds, before and after a checkpoint (every 5th), twice at the same place.
def test_an_interrupted_run_makes_the_same_weights(finished, run, tmp_path):
  for life in (3, 6, 11, 4, 17, 18, 19, 0, 2):
    with pytest.raises(CrashError):
      run.train(tmp_path, batches=Crashing(run.built.batches, life))
  run.train(tmp_path)
  assert_same_products(tmp_path, finished, run.built.mesh)
  steps = [(r["round"], r["step"]) for r in records(tmp_path)]
  assert steps == [(r["round"], r["step"]) for r in records(finished[0])]


def test_a_run_goes_on_from_its_newest_checkpoint(run, tmp_path, capsys):
  with pytest.raises(CrashError):
    run.train(tmp_path, batches=Crashing(run.built.batches, 17))
  capsys.readouterr()
  # Saved before update 15: three are left, and no batch more is taken.
  run.train(
    tmp_path,
    batches=Crashing(run.built.batches, UPDATES - 15),
    stages=run.built.stages[:1],
  )
  assert "teacher: goes on from update 15\n" in capsys.readouterr().err


def test_a_crash_at_a_round_s_end_changes_nothing(
  finished, run, tmp_path, monkeypatch
):
  def crash(*_):
    raise CrashError

  def crash_here(round_dir):
    if str(round_dir).endswith(ROUNDS[crashes]):
      raise CrashError

  for crashes in range(2):
    # Trained but not written.
    with monkeypatch.context() as patch:
      patch.setattr(checkpoint, "save_final", crash)
      with pytest.raises(CrashError):
        run.train(tmp_path)
    assert not checkpoint.has_final(epath.Path(tmp_path) / ROUNDS[crashes])
    # Written, but its checkpoints are still there.
    with monkeypatch.context() as patch:
      patch.setattr(checkpoint, "discard", crash_here)
      with pytest.raises(CrashError):
        run.train(tmp_path)
    assert checkpoint.has_final(epath.Path(tmp_path) / ROUNDS[crashes])
  # Written, but the picture of it fails.
  with pytest.raises(CrashError):
    run.train(tmp_path, crash)
  assert checkpoint.has_final(epath.Path(tmp_path) / ROUNDS[2])
  run.train(tmp_path)
  assert_same_products(tmp_path, finished, run.built.mesh)


def test_finished_rounds_are_not_made_again(run, tmp_path):
  with pytest.raises(CrashError):
    run.train(tmp_path, batches=Crashing(run.built.batches, UPDATES + 7))
  before = {
    path: path.stat().st_mtime_ns for path in (tmp_path / "teacher").rglob("*")
  }
  with pytest.raises(CrashError):
    run.train(tmp_path, batches=Crashing(run.built.batches, 3))
  assert before == {
    path: path.stat().st_mtime_ns for path in (tmp_path / "teacher").rglob("*")
  }


def test_a_run_goes_on_on_another_mesh(finished, run, tmp_path, mesh_of):
  with pytest.raises(CrashError):
    run.train(tmp_path, batches=Crashing(run.built.batches, 12))
  other = dataclasses.replace(run.built, mesh=mesh_of(2, 4))
  Run(other, {}).train(tmp_path, stages=run.built.stages[:1])
  expected, actual = (
    checkpoint.load_final(
      epath.Path(folder) / "teacher", "teacher", run.built.mesh
    )
    for folder in (finished[0], tmp_path)
  )
  # To rounding: sums over 8 devices add in another order.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), expected, actual
  )


def test_a_run_that_diverges_stops_and_says_so(run, tmp_path):
  optimizer = Optimizer(learning_rate=1e30, ema_decay=0.9)
  (teacher, _) = run.built.stages
  stages = (dataclasses.replace(teacher, optimizer=optimizer),)
  with pytest.raises(
    TrainingStoppedError,
    match="teacher stopped at update 8: the last 7 updates had gradients that"
    " are not finite; lower the learning rate",
  ) as error:
    run.train(tmp_path, stages=stages, max_skipped=3)
  assert "\n" not in str(error.value)
  assert not checkpoint.has_final(epath.Path(tmp_path) / "teacher")


def test_a_batch_that_the_devices_do_not_divide_is_refused(run, mesh_of):
  built = dataclasses.replace(run.built, mesh=mesh_of(3))
  with pytest.raises(
    ValueError, match=r"teacher\.batch_size is 8, which the 3 devices do not"
  ):
    Run(built, {}).train("unused")


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"checkpoint": -1}, "cadence.checkpoint is -1; pass 0 or more"),
    ({"log": 0}, "cadence.log is 0"),
    ({"keep": 0}, "cadence.keep 0; pass 1"),
  ],
)
def test_refuses_a_cadence_out_of_range(fields, message):
  with pytest.raises(ValueError, match=message):
    Cadence(**fields)
