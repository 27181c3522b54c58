"""Tests that a round hands on its best weights, also after crashes.

The scores are given by the test: in the first run, each new tree of weights
gets the next score of a list. In other runs, the same weights get the same
score again, and weights that did not occur in the first run fail the test.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from diffdistill.objectives.objective import Objective, Passes, Tree
from diffdistill.training import best, checkpoint, selection_by_score
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.running import Checkpoints
from diffdistill.training.selection_by_score import Selection
from diffdistill.training.training_stage import Training

UPDATES, EVERY = 18, 4
NAN = float("nan")


@dataclasses.dataclass(frozen=True)
class Mean(Objective):
  """An objective that a curriculum takes for the objective of a classifier."""

  rounds = "one"
  sampler = None

  @property
  def trees(self):
    return {"classifier": Tree(network=Zero())}

  @property
  def needs(self):
    return {}

  def passes(self, turn, num_steps, guided):
    return Passes()

  def loss(self, turn, trees, batch, key, now):
    error = jnp.mean(batch["image"]) - trees["classifier"]
    return error**2, {}


class Zero:
  """A network that has one number as its weights."""

  def init(self, key):
    return jnp.zeros(())


JUDGE = Training(
  name="judge",
  objective=Mean(),
  optimizer=Optimizer(learning_rate=0.1),
  num_updates=1,
  batch_size=8,
)


class Scripted:
  """Gives new weights the next score, and known weights their old score."""

  def __init__(self, *script):
    self.script = list(script)
    self.score_of = {}
    self.products = []

  def __call__(self, stage, round_, product, num_images):
    assert (round_.name, num_images) == ("halve/001", 33)
    host = jax.device_get(product)
    bits = b"".join(leaf.tobytes() for leaf in jax.tree.leaves(host))
    if bits not in self.score_of:
      self.score_of[bits] = self.script.pop(0)
      self.products.append(host)
    return self.score_of[bits]


@pytest.fixture(scope="module")
def run(tiny_config, run_of):
  """A run of a judge, a teacher and one student with a moving average."""
  fields = {**tiny_config["stages"]["halve"], "start_steps": 2}
  fields["optimizer"] = {**fields["optimizer"], "ema_decay": 0.9}
  config = {
    **tiny_config,
    "stages": {**tiny_config["stages"], "halve": fields},
  }
  made = run_of(config)
  teacher, halve = made.built.stages
  teacher = dataclasses.replace(teacher, num_updates=2)
  built = dataclasses.replace(made.built, stages=(JUDGE, teacher, halve))
  return dataclasses.replace(made, built=built)


@pytest.fixture
def select(run):
  """select(...) makes stages whose best student is selected by a distance."""

  def make(patience=0):
    *others, halve = run.built.stages
    select = Selection(
      by="distance", every=EVERY, patience=patience, num_images=33
    )
    return *others, dataclasses.replace(halve, select=select)

  return make


def distances(workdir, records_of):
  """Reads (step, score) of every record that has a score."""
  return [
    (record["step"], record["distance"])
    for record in records_of(workdir)
    if "distance" in record
  ]


def assert_trees_are_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


BEFORE_THE_STUDENT = 1 + 2  # Updates of the classifier and of the teacher.
SCORES = 0.5, 0.2, 0.4, 0.2, 0.3


@pytest.fixture(scope="module")
def scores():
  return Scripted(*SCORES)


@pytest.fixture(scope="module")
def finished(run, scores, tmp_path_factory):
  """Trains without interruptions, and gives the workdir of the run."""
  workdir = tmp_path_factory.mktemp("finished")
  *others, halve = run.built.stages
  halve = dataclasses.replace(
    halve, select=Selection(by="distance", every=EVERY, num_images=33)
  )
  run.train(workdir, distance=scores, stages=(*others, halve))
  return workdir


def test_the_product_is_the_best_and_the_last_is_kept(
  finished, run, scores, records_of
):
  assert distances(finished, records_of) == list(
    zip((4, 8, 12, 16, UPDATES), SCORES, strict=True)
  )
  products = run.products(finished)
  assert_trees_are_same(products["halve/001 student"], scores.products[1])
  assert_trees_are_same(products["halve/001 last_student"], scores.products[4])
  here, left = checkpoint.products_of(epath.Path(finished) / "halve" / "001")
  assert (set(here), set(left)) == ({"student", "last_student"}, set())
  made = {path.name for path in (finished / "halve" / "001").iterdir()}
  assert made == {"final", "final.json"}


def test_a_selection_does_not_change_the_training(finished, run, tmp_path):
  run.train(tmp_path)
  last = run.products(tmp_path)["halve/001 student"]
  assert_trees_are_same(last, run.products(finished)["halve/001 last_student"])


@pytest.mark.slow
def test_an_interrupted_selection_has_the_same_result(
  finished, run, scores, select, tmp_path
):
  # Crash before, at and after scores (after every 4th update) and checkpoints
  # (after every 5th update).
  for life in (BEFORE_THE_STUDENT + 4, 3, 5, 4, 8, 2, 0, 5):
    run.crash(tmp_path, life, distance=scores, stages=select())
  run.train(tmp_path, distance=scores, stages=select())
  run.assert_same(tmp_path, finished)


@pytest.mark.slow
def test_a_crash_around_the_writing_of_a_best_changes_nothing(
  finished, run, scores, select, tmp_path, monkeypatch, crash_error
):
  save_best, save = best.save_best, Checkpoints.save

  def crash(*_):
    raise crash_error

  def crash_after_best(*arguments):
    save_best(*arguments)
    raise crash_error

  def crash_after_save(self, *arguments):
    save(self, *arguments)
    raise crash_error

  # The run saves best weights after 4 and 8 updates, and checkpoints after 5,
  # 10 and 15 updates.
  for place, name, broken, step in (
    (selection_by_score, "save_best", crash, None),
    (selection_by_score, "save_best", crash_after_best, 4),
    # After this crash the disk has best weights, but no checkpoint.
    (Checkpoints, "save", crash, 4),
    (Checkpoints, "save", crash_after_save, 4),
    (selection_by_score, "save_best", crash, 4),
    (selection_by_score, "save_best", crash_after_best, 8),
    # After this crash the best weights are newer than the newest checkpoint.
    (Checkpoints, "save", crash, 8),
    (selection_by_score, "load_best", crash, 8),
    (checkpoint, "save_final", crash, 8),
    (checkpoint, "discard", crash, 8),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(place, name, broken)
      if name == "discard":
        # Crash only in the round that is scored.
        def discard(round_dir):
          if str(round_dir).endswith("halve/001"):
            raise crash_error

        patch.setattr(place, name, discard)
      run.crash(tmp_path, distance=scores, stages=select())
    kept = best.best_of(epath.Path(tmp_path) / "halve" / "001")
    assert (kept and kept.step) == step
  run.train(tmp_path, distance=scores, stages=select())
  run.assert_same(tmp_path, finished)


def test_a_round_ends_when_its_patience_is_used_up(
  run, select, tmp_path, records_of, capsys
):
  scores = Scripted(0.2, 0.5, 0.6)
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  run.train(whole, distance=scores, stages=select(patience=2))
  assert "halve/001: ends at update 12" in capsys.readouterr().err
  assert distances(whole, records_of) == [(4, 0.2), (8, 0.5), (12, 0.6)]
  products = run.products(whole)
  assert_trees_are_same(products["halve/001 student"], scores.products[0])
  assert_trees_are_same(products["halve/001 last_student"], scores.products[2])
  # A run must end at the same update, whether it crashes before or after its
  # last score.
  run.crash(
    killed,
    BEFORE_THE_STUDENT + 11,
    distance=scores,
    stages=select(patience=2),
  )
  run.crash(killed, 1, distance=scores, stages=select(patience=2))
  run.train(killed, 2, distance=scores, stages=select(patience=2))
  run.assert_same(killed, whole)


def test_the_last_weights_are_the_product_if_every_score_is_nan(
  run, finished, select, tmp_path, records_of
):
  scores = Scripted(*[NAN] * 5)
  run.train(tmp_path, distance=scores, stages=select(patience=1))
  assert [score for _, score in distances(tmp_path, records_of)] == [None] * 5
  products = run.products(tmp_path)
  assert "halve/001 last_student" not in products
  assert_trees_are_same(
    products["halve/001 student"],
    run.products(finished)["halve/001 last_student"],
  )
