"""Tests that the best weights of a round are kept, even after a crash."""

import shutil

import pytest

from diffdistill.training.best import best_of, load_best, save_best
from diffdistill.training.sharding import Layout
from tests.training.stored_given import (
  assert_same,
  flip_a_byte,
  names,
)

pytestmark = pytest.mark.usefixtures("small_arrays_are_split")


def best_files(round_dir):
  """Lists the folders of best weights; each must have its .json file."""
  found = names(round_dir / "best")
  folders = {name for name in found if not name.endswith(".json")}
  assert found == folders | {f"{name}.json" for name in folders}
  return sorted(folders)


def test_new_best_weights_replace_the_old_ones(state_on, mesh_of, round_dir):
  first, second = (state_on(mesh_of(2), seed)[0].params for seed in (0, 1))
  assert best_of(round_dir) is None
  save_best(round_dir, first, 5, 0.3)
  save_best(round_dir, second, 10, 0.1)
  best = best_of(round_dir)
  # Use a score of 0.1: every bit of it must be kept, because later scores are
  # compared with it.
  assert (best.step, best.score) == (10, 0.1)
  assert len(best_files(round_dir)) == 1
  assert_same(load_best(round_dir, best, Layout(mesh=mesh_of(1))), second)


@pytest.mark.parametrize("score", [-0.25, 0.0, float("inf"), 1e-300])
def test_the_score_in_a_name_is_read_back_exactly(
  state_on, mesh_of, round_dir, score
):
  save_best(round_dir, state_on(mesh_of(1))[0].params, 5, score)
  assert best_of(round_dir).score == score


def test_weights_with_a_score_of_nan_are_not_kept(state_on, mesh_of, round_dir):
  params = state_on(mesh_of(1))[0].params
  assert save_best(round_dir, params, 5, float("nan")) is None
  assert best_of(round_dir) is None


def test_a_crash_before_the_old_best_is_removed_leaves_the_new_one(
  state_on, mesh_of, round_dir, tmp_path
):
  first, second = (state_on(mesh_of(1), seed)[0].params for seed in (0, 1))
  folder = tmp_path / "halve" / "004" / "best"
  save_best(round_dir, first, 10, 0.3)
  (old,) = best_files(round_dir)
  shutil.copytree(folder, tmp_path / "before")
  save_best(round_dir, second, 5, 0.1)
  shutil.copytree(tmp_path / "before", folder, dirs_exist_ok=True)
  # Add a folder of weights as a crash leaves it in the middle of a write.
  (new,) = set(best_files(round_dir)) - {old}
  shutil.copytree(
    folder / new, folder / f"15_{(0.01).hex()}.orbax-checkpoint-tmp"
  )
  assert best_of(round_dir).step == 5
  best = save_best(round_dir, first, 20, 0.05)
  assert len(best_files(round_dir)) == 1
  assert_same(load_best(round_dir, best, Layout(mesh=mesh_of(1))), first)


def test_a_damaged_best_is_refused(state_on, mesh_of, round_dir, tmp_path):
  params = state_on(mesh_of(1))[0].params["student"]
  best = save_best(round_dir, params, 5, 0.5)
  flip_a_byte(tmp_path / "halve" / "004" / "best" / best_files(round_dir)[0])
  with pytest.raises(
    ValueError, match=r"best/5_0x\S+ .*; restore it, or remove"
  ):
    load_best(round_dir, best, Layout(mesh=mesh_of(1)))
