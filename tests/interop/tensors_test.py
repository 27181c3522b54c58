"""Tests that weights are read from files of torch and from safetensors."""

import base64
import json
import pathlib
import runpy

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffdistill.interop.tensors import read_tensors

HERE = pathlib.Path(__file__).parent
MAKER = runpy.run_path(str(HERE / "make_golden_tensors.py"))
WRITER = runpy.run_path(str(HERE / "write_pickles.py"))
GOLDEN = json.loads(MAKER["GOLDEN"].read_text())


def same(tensors, expected):
  assert tensors.keys() == expected.keys()
  for name, array in expected.items():
    assert tensors[name].dtype == np.float32
    assert tensors[name].shape == array.shape
    np.testing.assert_array_equal(tensors[name], array, err_msg=name)


@pytest.fixture
def written(tmp_path):
  """Returns a function that writes bytes to a file and returns its path."""

  def write(data, name="weights.pt"):
    path = tmp_path / name
    path.write_bytes(data)
    return path

  return write


@pytest.mark.parametrize("kind", GOLDEN)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_files_that_torch_wrote_are_read(kind, suffix, written):
  data = base64.b64decode(GOLDEN[kind])
  same(read_tensors(written(data, f"a{suffix}")), MAKER["arrays"]())


@pytest.mark.torch
def test_files_of_the_installed_torch_are_read(written):
  for data in MAKER["written"]().values():
    same(read_tensors(written(data)), MAKER["arrays"]())


@pytest.mark.parametrize("wrapper", ["state_dict", "net"])
def test_a_state_dict_within_a_training_checkpoint_is_read(wrapper, written):
  a = np.arange(3, dtype=np.float32)
  content = {wrapper: {"a": WRITER["parameter"](a)}, "epoch": 3}
  same(read_tensors(written(WRITER["dumps"](content))), {"a": a})


def test_safetensors_files_are_read(tmp_path):
  path = tmp_path / "weights.safetensors"
  save_file({"a": np.arange(3, dtype=np.float32)}, path)
  same(read_tensors(path), {"a": np.arange(3, dtype=np.float32)})


def refused(path, message):
  with pytest.raises(ValueError, match=message) as refusal:
    read_tensors(path)
  assert "\n" not in str(refusal.value)
  assert str(path) in str(refusal.value)


@pytest.mark.parametrize("content", [3, [1, 2], {"epoch": 3}, {"net": 3}, None])
def test_pickles_without_a_state_dict_are_refused(content, written):
  path = written(WRITER["dumps"](content))
  refused(path, "holds no state dict of tensors; save model")


def test_missing_damaged_and_other_files_are_refused(tmp_path, written):
  refused(tmp_path / "none.pt", "there is no file")
  refused(
    written(b"", "weights.pkl"), "ends in .safetensors, .pt, .pth or .bin"
  )
  refused(written(b""), "is damaged or no pickle")
  for data in map(base64.b64decode, GOLDEN.values()):
    for size in (10, len(data) // 2, len(data) - 3):
      refused(written(data[:size]), "is damaged|has no end|is shorter")


def test_too_many_views_of_one_storage_are_refused(written):
  values = np.zeros(10000, np.float32)
  storage = WRITER["storage_id"](values, "0", None)

  def file(count):
    tensors = {
      str(i): WRITER["tensor"](storage, (10000,), (1,)) for i in range(count)
    }
    return WRITER["legacy_file"](tensors, [("0", values)])

  # A file with nine views of one storage is read, because networks may share
  # weights.
  assert len(read_tensors(written(file(9)))) == 9
  path = written(file(200))
  refused(path, f"of {path.stat().st_size} bytes has tensors of 2000000 values")
