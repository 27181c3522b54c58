import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from etils import epath

from diffdistill.system.files import read_json
from diffdistill.training import checkpoint, stored
from diffdistill.training.best import best_of, load_best, save_best
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.running import Checkpoints, newest_sound, steps_in
from diffdistill.training.sharding import Layout, tree_shardings
from diffdistill.training.state import create_state, with_shardings

FROZEN = {"teacher": {"w": jnp.zeros((8, 8))}}


@pytest.fixture(autouse=True)
def _small_arrays_are_split(monkeypatch):
  monkeypatch.setattr("diffdistill.training.sharding.MIN_SIZE_TO_SPLIT", 1)


@pytest.fixture
def state_on(least_squares):
  """A state full of distinct numbers on a mesh, and what describes it."""

  def make(mesh, seed=0, ema_decay=0.9):
    optimizer = Optimizer(learning_rate=0.1, ema_decay=ema_decay)
    objective, key = least_squares(size=8), jax.random.key(seed)
    optimizers = dict.fromkeys(objective.trees, optimizer)
    state = create_state(objective, optimizers, key, FROZEN)
    numbers = iter(range(1, 1000))
    state = jax.tree.map(lambda leaf: leaf + next(numbers) + seed, state)
    state = jax.device_put(state, tree_shardings(state, Layout(mesh=mesh)))
    return state, with_shardings(state, Layout(mesh=mesh))

  return make


@pytest.fixture
def round_dir(tmp_path):
  return epath.Path(tmp_path / "halve" / "004")


@pytest.fixture
def warnings(monkeypatch):
  seen = []
  monkeypatch.setattr(
    logging, "warning", lambda text, *args: seen.append(text % args)
  )
  # Orbax has warnings of its own.
  return lambda: [line for line in seen if line.startswith("skipped")]


def save(round_dir, states, keep=2):
  checkpoints = Checkpoints(round_dir, keep)
  for step, state in states.items():
    checkpoints.save(state, step)
  checkpoints.close()


def restore(round_dir, abstract):
  checkpoints = Checkpoints(round_dir)
  try:
    return checkpoints.restore(abstract)
  finally:
    checkpoints.close()


def names(folder):
  return {path.name for path in folder.iterdir()}


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


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
  # The next update does this too: it writes into the donated buffers.
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


def test_the_newest_are_kept_and_the_newest_is_used(
  state_on, mesh_of, round_dir
):
  states = {step: state_on(mesh_of(1), step)[0] for step in (5, 10, 15, 20)}
  save(round_dir, states)
  # The last one is not read back in time to remove another for it.
  assert names(round_dir / "checkpoints") == {
    f"{step}{ending}" for step in (10, 15, 20) for ending in ("", ".json")
  }
  restored = restore(round_dir, state_on(mesh_of(1))[1])
  assert_same(restored, states[20])


def test_a_round_without_checkpoints_restores_nothing(
  state_on, mesh_of, round_dir
):
  assert restore(round_dir, state_on(mesh_of(1))[1]) is None


def files(folder):
  return sorted(
    (path for path in folder.glob("**/*") if path.is_file()),
    key=lambda path: path.stat().st_size,
  )


def cut_in_half(folder):
  largest = files(folder)[-1]
  largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def flip_a_byte(folder):
  largest = files(folder)[-1]
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 255
  largest.write_bytes(bytes(data))


def empty_the_largest(folder):
  files(folder)[-1].write_bytes(b"")


def empty_everything(folder):
  for path in files(folder):
    path.write_bytes(b"")


def remove_metadata(folder):
  for path in files(folder):
    if "METADATA" in path.name.upper():
      path.unlink()


def remove_the_arrays(folder):
  for path in folder.iterdir():
    if path.is_dir():
      shutil.rmtree(path)


DAMAGES = (
  cut_in_half,
  flip_a_byte,
  empty_the_largest,
  empty_everything,
  remove_metadata,
  remove_the_arrays,
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_newest_checkpoint_leaves_the_one_before(
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


def test_final_results_come_back_by_name_on_any_mesh(
  state_on, mesh_of, round_dir
):
  state, _ = state_on(mesh_of(8))
  products = {**state.params, "last_student": state.averages["student"]["ema"]}
  checkpoint.save_final(round_dir, products)
  assert checkpoint.product_names(round_dir) == {
    "student", "auxiliary", "last_student",
  }  # fmt: skip
  mesh = mesh_of(1, 4)
  for name, tree in products.items():
    product = checkpoint.load_final(round_dir, name, Layout(mesh=mesh))
    assert_same(product, tree)
    assert (
      product["w"].sharding == tree_shardings(product, Layout(mesh=mesh))["w"]
    )


def test_a_name_that_a_round_did_not_make_is_refused(
  state_on, mesh_of, round_dir
):
  checkpoint.save_final(round_dir, state_on(mesh_of(1))[0].params)
  with pytest.raises(
    ValueError, match=r"004 holds no teacher, only auxiliary, student$"
  ):
    checkpoint.load_final(round_dir, "teacher", Layout(mesh=mesh_of(1)))


@pytest.mark.parametrize("damage", [cut_in_half, empty_everything])
def test_a_damaged_final_result_is_refused_in_one_line(
  state_on, mesh_of, round_dir, tmp_path, damage
):
  checkpoint.save_final(round_dir, state_on(mesh_of(1))[0].params)
  damage(tmp_path / "halve" / "004" / "final" / "student")
  with pytest.raises(
    ValueError, match=r"is damaged: it has \d+ of \d+ bytes.* train"
  ) as e:
    checkpoint.load_final(round_dir, "student", Layout(mesh=mesh_of(1)))
  assert "\n" not in str(e.value)


def test_a_round_of_pairs_is_done_without_weights(round_dir):
  assert not checkpoint.has_final(round_dir)
  checkpoint.mark_final(round_dir, "/disk/pairs")
  assert checkpoint.has_final(round_dir)
  assert read_json(round_dir / "final.json")["words"] == "/disk/pairs"


@pytest.mark.parametrize("bucket", [False, True])
def test_a_final_folder_without_its_record_is_ignored(
  state_on, mesh_of, round_dir, tmp_path, monkeypatch, bucket
):
  monkeypatch.setattr(stored, "in_bucket", lambda path: bucket)
  params = state_on(mesh_of(1))[0].params
  layout = Layout(mesh=mesh_of(1))
  checkpoint.save_final(round_dir, params)
  save_best(round_dir, params, 5, 0.3)
  assert checkpoint.has_final(round_dir)
  assert checkpoint.is_done(round_dir, layout)
  assert checkpoint.product_names(round_dir) == {"student", "auxiliary"}
  assert best_of(round_dir).step == 5
  for record in ("final.json", f"best/5_{(0.3).hex()}.json"):
    (round_dir / record).unlink()
  assert not checkpoint.has_final(round_dir)
  assert not checkpoint.is_done(round_dir, layout)
  with pytest.raises(ValueError, match="004 has no final result; train until"):
    checkpoint.product_names(round_dir)
  assert best_of(round_dir) is None
  # And what is there makes room for the whole.
  checkpoint.save_final(round_dir, params)
  assert checkpoint.is_done(round_dir, layout)


def test_a_round_with_an_empty_final_folder_is_not_done(
  state_on, mesh_of, round_dir
):
  save(round_dir, {5: state_on(mesh_of(1))[0]})
  (round_dir / "final").mkdir()
  assert not checkpoint.is_done(round_dir, Layout(mesh=mesh_of(1)))
  assert steps_in(round_dir / "checkpoints") == [5]


def test_in_a_bucket_a_checkpoint_without_its_mark_is_ignored(
  state_on, mesh_of, round_dir, tmp_path, monkeypatch
):
  # There Orbax writes under the last name, and its mark at the end.
  monkeypatch.setattr(stored, "in_bucket", lambda path: True)
  states = {step: state_on(mesh_of(1), step)[0] for step in (5, 10)}
  save(round_dir, states)
  (round_dir / "checkpoints" / "10" / "commit_success.txt").unlink()
  assert_same(restore(round_dir, state_on(mesh_of(1))[1]), states[5])


def test_an_unfinished_round_has_no_final_result(state_on, mesh_of, round_dir):
  save(round_dir, {5: state_on(mesh_of(1))[0]})
  with pytest.raises(ValueError, match="004 has no final result; train until"):
    checkpoint.load_final(round_dir, "student", Layout(mesh=mesh_of(1)))


def test_checkpoints_may_lie_in_a_relative_folder(
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


def test_discarding_checkpoints_keeps_the_final_result(
  state_on, mesh_of, round_dir
):
  state, _ = state_on(mesh_of(1))
  checkpoints = Checkpoints(round_dir)
  checkpoints.save(state, 5)
  save_best(round_dir, state.params["student"], 5, 0.5)
  checkpoint.save_final(round_dir, state.params)
  checkpoints.close()
  checkpoint.discard(round_dir)
  assert names(round_dir) == {"final", "final.json"}


def best_files(round_dir):
  """The folders; a file of the same name is beside each."""
  found = names(round_dir / "best")
  folders = {name for name in found if not name.endswith(".json")}
  assert found == folders | {f"{name}.json" for name in folders}
  return sorted(folders)


def test_the_best_takes_the_place_of_the_one_before(
  state_on, mesh_of, round_dir
):
  first, second = (state_on(mesh_of(2), seed)[0].params for seed in (0, 1))
  assert best_of(round_dir) is None
  save_best(round_dir, first, 5, 0.3)
  save_best(round_dir, second, 10, 0.1)
  best = best_of(round_dir)
  # Every bit of 0.1 is kept, because later scores are compared with it.
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
  # And one that a crash cut off while it was being written.
  (new,) = set(best_files(round_dir)) - {old}
  shutil.copytree(
    folder / new, folder / f"15_{(0.01).hex()}.orbax-checkpoint-tmp"
  )
  assert best_of(round_dir).step == 5
  best = save_best(round_dir, first, 20, 0.05)
  assert len(best_files(round_dir)) == 1
  assert_same(load_best(round_dir, best, Layout(mesh=mesh_of(1))), first)


def flip_a_bit_of_an_array(tree, name):
  """The tree with one bit of one of its arrays flipped."""

  def flip(path, leaf):
    if jax.tree_util.keystr(path, simple=True, separator="/") != name:
      return leaf
    bits = np.array(leaf).view(np.uint32)
    bits.reshape(-1)[3] ^= 1 << 30
    return jax.device_put(bits.view(leaf.dtype), leaf.sharding)

  return jax.tree_util.tree_map_with_path(flip, tree)


@pytest.fixture
def write_wrongly(monkeypatch):
  """Lets the disk keep another bit of one array than it is given."""

  def wrong(name):
    real = stored.begin

    def begin(folder, trees):
      return real(folder, flip_a_bit_of_an_array(trees, name))

    monkeypatch.setattr(stored, "begin", begin)

  return wrong


def test_a_checkpoint_with_one_other_bit_is_skipped_and_its_array_is_named(
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
  # Each is read back before the next is saved.
  save(round_dir, {10: states[10], 15: states[15]}, keep=1)
  assert steps_in(round_dir / "checkpoints") == [15, 5]
  assert_same(restore(round_dir, state_on(mesh_of(1))[1]), states[5])


def test_a_final_result_that_was_written_wrong_is_refused(
  state_on, mesh_of, round_dir, write_wrongly
):
  state, _ = state_on(mesh_of(1))
  save(round_dir, {5: state})
  write_wrongly("student/w")
  with pytest.raises(
    ValueError, match=r"final is damaged: the array w of student .* just now"
  ):
    checkpoint.save_final(round_dir, state.params)
  assert not checkpoint.has_final(round_dir)
  assert names(round_dir) == {"checkpoints"}


def test_a_final_result_that_changed_leaves_its_checkpoints(
  state_on, mesh_of, round_dir, tmp_path
):
  state, _ = state_on(mesh_of(1))
  layout = Layout(mesh=mesh_of(1))
  save(round_dir, {5: state})
  checkpoint.save_final(round_dir, state.params)
  assert checkpoint.is_done(round_dir, layout)
  flip_a_byte(tmp_path / "halve" / "004" / "final" / "student")
  assert not checkpoint.is_done(round_dir, layout)
  checkpoint.discard(round_dir)
  with pytest.raises(
    ValueError, match=r"final\S+ is damaged.*; restore it, or remove"
  ):
    checkpoint.load_final(round_dir, "student", layout)


def test_a_finished_round_with_a_missing_file_is_refused(
  state_on, mesh_of, round_dir, tmp_path
):
  checkpoint.save_final(round_dir, state_on(mesh_of(1))[0].params)
  file = files(tmp_path / "halve" / "004" / "final")[-1]
  file.unlink()
  with pytest.raises(ValueError, match=f"{file} is missing; restore it, or re"):
    checkpoint.is_done(round_dir, Layout(mesh=mesh_of(1)))


def test_a_damaged_record_is_refused_and_names_its_file(
  state_on, mesh_of, round_dir
):
  checkpoint.save_final(round_dir, state_on(mesh_of(1))[0].params)
  record = round_dir / "final.json"
  record.write_text(record.read_text().replace("student", "studenT"))
  with pytest.raises(ValueError, match=r"final\.json is damaged.*; restore it"):
    checkpoint.has_final(round_dir)


def test_a_damaged_best_is_refused(state_on, mesh_of, round_dir, tmp_path):
  params = state_on(mesh_of(1))[0].params["student"]
  best = save_best(round_dir, params, 5, 0.5)
  flip_a_byte(tmp_path / "halve" / "004" / "best" / best_files(round_dir)[0])
  with pytest.raises(
    ValueError, match=r"best/5_0x\S+ .*; restore it, or remove"
  ):
    load_best(round_dir, best, Layout(mesh=mesh_of(1)))


@pytest.mark.parametrize("bit", range(0, 32, 5))
def test_a_flipped_bit_in_any_file_is_found_or_harmless(
  state_on, mesh_of, round_dir, tmp_path, bit
):
  state, _ = state_on(mesh_of(1))
  checkpoint.save_final(round_dir, state.params)
  folder = tmp_path / "halve" / "004"
  layout, noticed = Layout(mesh=mesh_of(1)), 0
  for path in files(folder):
    data = path.read_bytes()
    if not data:
      continue
    damaged = bytearray(data)
    damaged[(bit * len(data)) // 32] ^= 1 << (bit % 8)
    path.write_bytes(damaged)
    said = ""
    try:
      loaded = checkpoint.load_final(round_dir, "student", layout)
    except ValueError as error:
      said = str(error)
    else:
      assert_same(loaded, state.params["student"])
    noticed += bool(said)
    assert not said or f"{path} is damaged" in said
    path.write_bytes(data)
  assert noticed
