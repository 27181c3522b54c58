"""Tests that a finished round keeps its result; a damaged one is refused."""

import pytest

from diffdistill.system.files import read_json
from diffdistill.training import checkpoint, stored
from diffdistill.training.best import best_of, save_best
from diffdistill.training.running import Checkpoints, steps_in
from diffdistill.training.sharding import Layout, tree_shardings
from tests.training.stored_given import (
  assert_same,
  cut_in_half,
  empty_everything,
  files,
  flip_a_byte,
  names,
  save,
)

pytestmark = pytest.mark.usefixtures("small_arrays_are_split")


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
  # A new final result replaces the incomplete one.
  checkpoint.save_final(round_dir, params)
  assert checkpoint.is_done(round_dir, layout)


def test_a_round_with_an_empty_final_folder_is_not_done(
  state_on, mesh_of, round_dir
):
  save(round_dir, {5: state_on(mesh_of(1))[0]})
  (round_dir / "final").mkdir()
  assert not checkpoint.is_done(round_dir, Layout(mesh=mesh_of(1)))
  assert steps_in(round_dir / "checkpoints") == [5]


def test_an_unfinished_round_has_no_final_result(state_on, mesh_of, round_dir):
  save(round_dir, {5: state_on(mesh_of(1))[0]})
  with pytest.raises(ValueError, match="004 has no final result; train until"):
    checkpoint.load_final(round_dir, "student", Layout(mesh=mesh_of(1)))


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


def test_a_damaged_final_result_does_not_count_as_done(
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
