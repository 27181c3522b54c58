"""Tests that checkpoints restore the state, and that damage is noticed."""

import shutil

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from diffdistill.training import checkpoint, stored
from diffdistill.training.best import load_best, save_best
from diffdistill.training.running import Checkpoints, newest_sound, steps_in
from diffdistill.training.sharding import Layout
from tests.training.stored_given import (
  DAMAGES,
  assert_same,
  cut_in_half,
  names,
  restore,
  save,
)

pytestmark = pytest.mark.usefixtures("small_arrays_are_split")


def test_a_checkpoint_restores_the_whole_state(state_on, mesh_of, round_dir):
  state, abstract = state_on(mesh_of(2, 4))
  save(round_dir, {5: state})
  restored = restore(round_dir, abstract)
  assert_same(restored, state)
  for old, new in zip(
    jax.tree.leaves(state), jax.tree.leaves(restored), strict=True
  ):
    assert (old.sharding, old.dtype) == (new.sharding, new.dtype)


def test_a_save_is_not_changed_by_later_updates(state_on, mesh_of, round_dir):
  state, abstract = state_on(mesh_of(1))
  expected = jax.device_get(state)
  checkpoints = Checkpoints(round_dir)
  checkpoints.save(state, 5)
  # Write into the donated buffers, as the next update does.
  overwrite = jax.jit(
    lambda s: jax.tree.map(jnp.zeros_like, s), donate_argnums=0
  )
  overwrite(state)
  checkpoints.close()
  assert_same(restore(round_dir, abstract), expected)


def test_another_mesh_restores_the_same_numbers(state_on, mesh_of, round_dir):
  state, _ = state_on(mesh_of(1, 8))
  _, abstract = state_on(mesh_of(2, 2))
  save(round_dir, {5: state})
  restored = restore(round_dir, abstract)
  assert_same(restored, state)
  assert restored.params["student"]["w"].sharding.mesh == mesh_of(2, 2)


def test_the_newest_checkpoints_are_kept_and_the_newest_is_restored(
  state_on, mesh_of, round_dir
):
  states = {step: state_on(mesh_of(1), step)[0] for step in (5, 10, 15, 20)}
  save(round_dir, states)
  # The last checkpoint is not read back yet, so no older checkpoint is removed
  # for it.
  assert names(round_dir / "checkpoints") == {
    f"{step}{ending}" for step in (10, 15, 20) for ending in ("", ".json")
  }
  restored = restore(round_dir, state_on(mesh_of(1))[1])
  assert_same(restored, states[20])


def test_a_round_without_checkpoints_restores_nothing(
  state_on, mesh_of, round_dir
):
  assert restore(round_dir, state_on(mesh_of(1))[1]) is None


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_newest_checkpoint_is_skipped_with_a_warning(
  state_on, mesh_of, round_dir, tmp_path, warnings, damage
):
  states = {step: state_on(mesh_of(1), step)[0] for step in (5, 10)}
  save(round_dir, states)
  damage(tmp_path / "halve" / "004" / "checkpoints" / "10")
  restored = restore(round_dir, state_on(mesh_of(1))[1])
  assert_same(restored, states[5])
  (warning,) = warnings()
  assert f"skipped a checkpoint: {round_dir}/checkpoints/10" in warning
  assert "\n" not in warning


def test_a_broken_newest_checkpoint_is_overwritten(
  state_on, mesh_of, round_dir, tmp_path, warnings
):
  states = {step: state_on(mesh_of(1), step)[0] for step in (5, 10)}
  abstract = state_on(mesh_of(1))[1]
  save(round_dir, states)
  cut_in_half(tmp_path / "halve" / "004" / "checkpoints" / "10")
  checkpoints = Checkpoints(round_dir)
  assert_same(checkpoints.restore(abstract), states[5])
  checkpoints.save(states[10], 10)
  checkpoints.close()
  assert_same(restore(round_dir, abstract), states[10])


def test_a_round_whose_checkpoints_are_all_damaged_is_refused(
  state_on, mesh_of, round_dir, tmp_path, warnings
):
  save(round_dir, {step: state_on(mesh_of(1), step)[0] for step in (5, 10)})
  for step in ("5", "10"):
    cut_in_half(tmp_path / "halve" / "004" / "checkpoints" / step)
  with pytest.raises(
    ValueError, match=r"none of the checkpoints \[10, 5\]"
  ) as e:
    restore(round_dir, state_on(mesh_of(1))[1])
  assert "\n" not in str(e.value)
  assert "remove that folder" in str(e.value)
  assert len(warnings()) == 2


def test_an_unfinished_save_of_a_killed_process_is_ignored(
  state_on, mesh_of, round_dir, tmp_path
):
  state, abstract = state_on(mesh_of(1))
  save(round_dir, {5: state})
  folder = tmp_path / "halve" / "004"
  left = folder / "checkpoints" / "10.orbax-checkpoint-tmp"
  shutil.copytree(folder / "checkpoints" / "5", left)
  shutil.copytree(
    folder / "checkpoints" / "5", folder / "final.orbax-checkpoint-tmp"
  )
  assert not checkpoint.has_final(round_dir)
  assert_same(restore(round_dir, abstract), state)
  checkpoint.save_final(round_dir, state.params)
  assert checkpoint.has_final(round_dir)
  product = checkpoint.load_final(round_dir, "student", Layout(mesh=mesh_of(1)))
  assert_same(product, state.params["student"])


def test_in_a_bucket_a_checkpoint_without_its_mark_is_ignored(
  state_on, mesh_of, round_dir, tmp_path, monkeypatch
):
  # In a bucket, Orbax writes a folder under its final name and adds a mark at
  # the end.
  monkeypatch.setattr(stored, "in_bucket", lambda path: True)
  states = {step: state_on(mesh_of(1), step)[0] for step in (5, 10)}
  save(round_dir, states)
  (round_dir / "checkpoints" / "10" / "commit_success.txt").unlink()
  assert_same(restore(round_dir, state_on(mesh_of(1))[1]), states[5])


def test_checkpoints_may_be_in_a_relative_folder(
  state_on, mesh_of, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  state, abstract = state_on(mesh_of(1))
  relative = epath.Path("runs/a/teacher")
  save(relative, {5: state})
  assert_same(restore(relative, abstract), state)
  checkpoint.save_final(relative, state.params)
  product = checkpoint.load_final(relative, "student", Layout(mesh=mesh_of(1)))
  assert_same(product, state.params["student"])
  best = save_best(relative, product, 5, 0.5)
  assert_same(load_best(relative, best, Layout(mesh=mesh_of(1))), product)


def test_a_checkpoint_with_a_flipped_bit_is_skipped_and_the_array_named(
  state_on, mesh_of, round_dir, warnings, write_wrongly
):
  states = {step: state_on(mesh_of(1), step)[0] for step in (5, 10)}
  save(round_dir, {5: states[5]})
  write_wrongly("state/params/student/w")
  save(round_dir, {10: states[10]})
  _, abstract = state_on(mesh_of(2, 4))
  assert_same(restore(round_dir, abstract), states[5])
  (warning,) = warnings()
  assert warning == (
    f"skipped a checkpoint: {round_dir}/checkpoints/10 is damaged: the array"
    " params/student/w of state differs from what was saved"
  )
  assert [p.name for p in newest_sound(round_dir / "checkpoints")] == [
    "5", "5.json",
  ]  # fmt: skip


def test_a_wrongly_written_checkpoint_leaves_the_older_ones(
  state_on, mesh_of, round_dir, write_wrongly
):
  states = {step: state_on(mesh_of(1), step)[0] for step in (5, 10, 15)}
  save(round_dir, {5: states[5]}, keep=1)
  write_wrongly("state/averages/student/ema/w")
  # Each checkpoint must be read back before the next one is saved.
  save(round_dir, {10: states[10], 15: states[15]}, keep=1)
  assert steps_in(round_dir / "checkpoints") == [15, 5]
  assert_same(restore(round_dir, state_on(mesh_of(1))[1]), states[5])
