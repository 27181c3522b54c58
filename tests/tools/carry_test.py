"""`carry` copies what the rest of a run needs."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from diffdistill.run import from_config
from diffdistill.system.files import write_json
from diffdistill.tools import carry, evaluate, train
from diffdistill.training import checkpoint
from diffdistill.training.best import Best, best_of, save_best
from diffdistill.training.running import Checkpoints
from diffdistill.training.state import TrainState


@pytest.fixture(scope="module")
def config(judged_config):
  return judged_config


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
  """The workdir of a run whose rounds are all finished."""
  workdir = epath.Path(tmp_path_factory.mktemp("runs")) / "whole"
  train.train(config, workdir)
  return workdir


@pytest.fixture
def half(whole, tmp_path):
  """The workdir of a run in which halve/001 and the student are unfinished."""
  workdir = epath.Path(tmp_path) / "half"
  shutil.copytree(whole, workdir)
  (workdir / "halve" / "001").rmtree()
  (workdir / "student").rmtree()
  return workdir


def products(workdir):
  """The names of the weights in a workdir, by finished round."""
  result = {}
  for name in from_config.reopen(workdir).rounds:
    if checkpoint.has_final(workdir / name):
      result[name] = set(checkpoint.products_of(workdir / name)[0])
  return result


def weights(workdir, name, product="student"):
  layout = from_config.reopen(workdir).layout
  tree = checkpoint.load_final(workdir / name, product, layout)
  return jax.tree.leaves(jax.device_get(tree))


def test_only_weights_that_the_rest_of_a_run_needs_are_carried(half, tmp_path):
  carry.carry(half, epath.Path(tmp_path) / "all")
  # No model is judged yet, so the weights of all models are needed. No stage
  # needs second moments.
  assert products(epath.Path(tmp_path) / "all") == {
    "classifier": {"classifier"},
    "teacher": {"teacher"},
    "halve/002": {"student", "last_student"},
    "pairs": set(),
  }
  evaluate.evaluate(half, None, None)
  carry.carry(half, epath.Path(tmp_path) / "few")
  assert products(epath.Path(tmp_path) / "few") == {
    "classifier": {"classifier"},
    "teacher": {"teacher"},  # the teacher makes the pairs again
    "halve/002": {"student"},  # the teacher of halve/001
    "pairs": set(),
  }


@pytest.mark.parametrize("judged", [True, False])
def test_carry_does_not_change_the_workdir(half, tmp_path, judged):
  if judged:
    evaluate.evaluate(half, None, None)

  def files():
    paths = sorted(pathlib.Path(half).rglob("*"))
    return {p: p.stat().st_mtime_ns for p in paths if p.is_file()}

  before = files()
  carry.carry(half, epath.Path(tmp_path) / "small")
  assert files() == before


@pytest.mark.slow
def test_a_carried_run_makes_the_same_weights_and_rows(
  config, whole, half, tmp_path, capsys
):
  evaluate.evaluate(half, None, None)
  small = epath.Path(tmp_path) / "small"
  carry.carry(half, small)
  shutil.rmtree(half)
  train.train(config, small)
  for name in ("halve/001", "student/001"):
    for a, b in zip(weights(whole, name), weights(small, name), strict=True):
      assert np.array_equal(a, b), name
  capsys.readouterr()
  evaluate.evaluate(small, None, None)
  said = capsys.readouterr().err
  assert said.count("(judged before)") == 5
  evaluate.evaluate(whole, None, None)
  rows = [
    {
      (row["model"], row["steps"]): row["FD-classifier"]
      for row in json.loads((place / "evaluation.json").read_text())["rows"]
    }
    for place in (whole, small)
  ]
  assert rows[0] == rows[1]


@pytest.mark.slow
def test_of_a_judged_run_only_the_judge_is_carried(whole, tmp_path):
  evaluate.evaluate(whole, None, None)
  small = epath.Path(tmp_path) / "small"
  carry.carry(whole, small)
  left = {name: made for name, made in products(small).items() if made}
  assert left == {"classifier": {"classifier"}}
  evaluate.evaluate(small, None, None)
  for name in ("samples/compared.png", "metrics.jsonl"):
    assert (whole / name).read_bytes() == (small / name).read_bytes()


def test_rows_of_a_stage_s_last_weights_are_carried(whole, tmp_path):
  """The stage has one round, so its name has no number of steps."""
  workdir = epath.Path(tmp_path) / "copied"
  shutil.copytree(whole, workdir)
  evaluate.evaluate(workdir, None, None)
  shutil.copytree(
    workdir / "evaluated" / "teacher", workdir / "evaluated" / "teacher.last"
  )
  small = epath.Path(tmp_path) / "small"
  carry.carry(workdir, small)

  def rows(place):
    folder = pathlib.Path(place) / "evaluated"
    return {p.relative_to(folder) for p in folder.rglob("*_*.npz")}

  assert rows(small) == rows(workdir)
  assert any("teacher.last" in path.parts for path in rows(small))
  assert not list((small / "evaluated").glob("*reference*"))


def test_the_newest_undamaged_checkpoint_is_carried(half, tmp_path):
  folder = half / "halve" / "001"
  w = jax.numpy.arange(8.0)
  for step in (5, 10, 15):
    state = TrainState(
      step=step * jax.numpy.ones(()), params={"w": w}, opt_state={}, averages={}
    )
    with Checkpoints(folder) as checkpoints:
      checkpoints.save(state, step)
  newest = pathlib.Path(folder / "checkpoints" / "15")
  shutil.rmtree(next(path for path in newest.glob("*/d")))
  save_best(folder, {"w": w}, 5, 1.0)
  write_json(folder / "clock.json", {"num_updates": 12})
  small = epath.Path(tmp_path) / "small"
  carry.carry(half, small)
  carried = small / "halve" / "001"
  assert {path.name for path in carried.iterdir()} == {
    "best", "checkpoints", "clock.json",
  }  # fmt: skip
  assert {path.name for path in (carried / "checkpoints").iterdir()} == {
    "10", "10.json",
  }  # fmt: skip
  assert best_of(carried) == Best(step=5, score=1.0)


def test_a_folder_that_is_copied_itself_is_refused(half):
  for place in ("samples/new", "evaluated/new"):
    with pytest.raises(ValueError, match="keeps its own files; pass"):
      carry.carry(half, half / place)


def test_a_folder_that_exists_is_refused(half, tmp_path):
  with pytest.raises(ValueError, match="which is there already; pass a new"):
    carry.carry(half, epath.Path(tmp_path))


def test_a_bucket_is_refused(half):
  with pytest.raises(ValueError, match="gs://b/small is in a bucket, which"):
    carry.carry(half, epath.Path("gs://b/small"))


def test_carry_is_refused_if_needed_weights_were_left_behind(half, tmp_path):
  (half / "teacher" / "final").rmtree()
  checkpoint.mark_final(half / "teacher", "left")
  with pytest.raises(ValueError, match="its weights were left behind where"):
    carry.carry(half, epath.Path(tmp_path) / "small")
  assert not (epath.Path(tmp_path) / "small").exists()
