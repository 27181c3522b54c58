"""A kept row comes back exactly as it was, or not at all."""

import dataclasses

import numpy as np
import pytest
from etils import epath

from diffdistill.judging.judged_rows import (
  JudgedRow,
  JudgedRows,
  Weights,
  path_of,
)
from diffdistill.system import hosts

MADE_WITH = {
  **{"seed": 1, "num_images": 50},
  **{"model": "halve/004 last", "steps": 4},
}


@pytest.fixture
def kept(tmp_path):
  return JudgedRows(folder=epath.Path(tmp_path), fingerprint=str)


@pytest.fixture
def row():
  random = np.random.default_rng(0)
  return JudgedRow(
    made_with=MADE_WITH,
    weights="7",
    devices="1 cpu",
    columns={"FD-x": 0.1 + 0.2, "recall": None, "gap": float("nan")},
    shown=random.integers(0, 256, (12, 2, 2, 3), dtype=np.uint8),
    target=random.uniform(-1, 1, (5, 2, 2, 3)).astype(np.float32),
  )


def of(params):
  return Weights(None if params is None else lambda: params, str)


def test_a_kept_row_comes_back_bit_for_bit(kept, row):
  kept.keep(row)
  for weights in (of(7), of(None)):
    taken = kept.take(MADE_WITH, weights)
    assert taken is not None
    assert repr(taken.columns) == repr(row.columns)
    assert (taken.made_with, taken.weights) == (row.made_with, row.weights)
    np.testing.assert_array_equal(taken.shown, row.shown)
    np.testing.assert_array_equal(taken.target, row.target)
    assert taken.target.dtype == np.float32
  assert kept.take(MADE_WITH, of(8)) is None
  assert kept.take({**MADE_WITH, "seed": 2}, of(7)) is None
  assert kept.take({**MADE_WITH, "steps": 8}, of(7)) is None


def test_rows_with_different_settings_are_both_kept(kept, row):
  kept.keep(row)
  other = dataclasses.replace(row, made_with={**MADE_WITH, "seed": 2})
  kept.keep(other)
  for each in (row, other):
    taken = kept.take(each.made_with, of(7))
    assert taken is not None
    assert taken.made_with == each.made_with
  kept.keep(dataclasses.replace(row, weights="8"))
  assert kept.take(MADE_WITH, of(7)) is None
  assert len(list(kept.folder.glob("*/*/*.npz"))) == 2


def test_a_row_that_one_process_cannot_read_is_made_again(
  kept, row, monkeypatch
):
  kept.keep(row)
  monkeypatch.setattr(hosts, "everywhere", lambda here: False)
  assert kept.take(MADE_WITH, of(7)) is None


def test_weights_are_loaded_once_when_they_are_first_used(kept, row):
  loaded = []

  def load():
    loaded.append(7)
    return 7

  weights = Weights(load, str)
  assert kept.take(MADE_WITH, weights) is None
  assert loaded == []
  kept.keep(row)
  for _ in range(2):
    assert kept.take(MADE_WITH, weights) is not None
  assert (weights.params, loaded) == (7, [7])


def test_no_two_models_share_a_file(tmp_path):
  folder = epath.Path(tmp_path)
  names = ("halve/004", "halve/004 last", "halve_004", "halve", "halve last")
  paths = {path_of(folder, {**MADE_WITH, "model": name}) for name in names}
  assert len(paths) == len(names)


def test_rows_without_a_folder_are_not_kept(row):
  nothing = JudgedRows()
  nothing.keep(row)
  assert nothing.take(MADE_WITH, of(7)) is None
