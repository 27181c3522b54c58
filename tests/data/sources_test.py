"""Tests that sources in memory hold their data, or refuse wrong files."""

import gzip

import numpy as np
import pytest

from diffdistill.data.sources import Digits, Idx

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 6)).astype(np.uint8)
LABELS = np.array([2, 0, 1, 2, 1, 0, 2], np.uint8)


def _idx(array: np.ndarray) -> bytes:
  header = bytes((0, 0, 8, array.ndim))
  return header + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
  """Makes a folder like MNIST's: plain training files, gzipped test files."""
  (tmp_path / "train-images-idx3-ubyte").write_bytes(_idx(IMAGES))
  (tmp_path / "train-labels-idx1-ubyte").write_bytes(_idx(LABELS))
  for name, array in (("images-idx3", IMAGES[:3]), ("labels-idx1", LABELS[:3])):
    path = tmp_path / f"t10k-{name}-ubyte.gz"
    path.write_bytes(gzip.compress(_idx(array)))
  return tmp_path


def test_digits_are_split_completely():
  train, test = Digits(split="train"), Digits(split="test")
  assert (len(train), len(test)) == (1497, 300)
  assert train.image_shape == test.image_shape == (8, 8, 1)
  assert train.num_classes == test.num_classes == 10
  # The first image of the set is a test image, and the second is the first
  # training image.
  first = train.take(np.array([0]))
  assert first["label"].tolist() == [1]
  assert test.take(np.array([0]))["label"].tolist() == [0]
  # The levels 0 to 16 must become bytes from 0 to 255.
  everything = train.take(np.arange(len(train)))["image"]
  assert everything.dtype == np.uint8
  assert set(np.unique(everything)) == {round(v * 255 / 16) for v in range(17)}


def test_label_counts_are_of_the_split(mnist):
  assert Idx(path=str(mnist), split="train").label_counts == (2, 2, 3)
  assert Idx(path=str(mnist), split="test").label_counts == (1, 1, 1)


def test_digits_can_be_resized():
  source = Digits(split="test", image_size=4)
  image = source.take(np.array([5, 3]))["image"]
  assert source.image_shape == image.shape[1:] == (4, 4, 1)
  assert image.dtype == np.float32
  whole = Digits(split="test").take(np.array([5, 3]))["image"]
  blocks = whole.reshape(2, 4, 2, 4, 2, 1).mean(axis=(2, 4))
  np.testing.assert_allclose(image, blocks, rtol=1e-6)


def test_idx_reads_plain_and_gzipped(mnist):
  for split, count in (("train", 7), ("test", 3)):
    source = Idx(path=str(mnist), split=split)
    assert len(source) == count
    assert source.image_shape == (4, 6, 1)
    assert source.num_classes == 3
    taken = source.take(np.array([2, 0, 2]))
    np.testing.assert_array_equal(
      taken["image"], IMAGES[[2, 0, 2]][..., None], strict=True
    )
    np.testing.assert_array_equal(
      taken["label"], LABELS[[2, 0, 2]].astype(np.int32), strict=True
    )


def test_a_missing_idx_file_is_refused(tmp_path, refused):
  source = Idx(path=str(tmp_path / "no"), split="test")
  refused(
    source,
    str(tmp_path / "no" / "t10k-images-idx3-ubyte"),
    "dataset-fashion-mnist",
    error=FileNotFoundError,
  )


@pytest.mark.parametrize("kept", [0, 3, 10, 20, -1])
def test_a_truncated_idx_file_is_refused(mnist, kept, refused):
  file = mnist / "train-images-idx3-ubyte"
  file.write_bytes(file.read_bytes()[:kept])
  refused(Idx(path=str(mnist), split="train"), str(file), "download it again")


def test_an_idx_file_that_is_too_long_is_refused(mnist, refused):
  file = mnist / "train-labels-idx1-ubyte"
  file.write_bytes(file.read_bytes() + b"\0")
  refused(Idx(path=str(mnist), split="train"), str(file), "holds 8 bytes", "7")


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_truncated_gzip_file_is_refused(mnist, kept, refused):
  file = mnist / "t10k-images-idx3-ubyte.gz"
  file.write_bytes(file.read_bytes()[:kept])
  refused(Idx(path=str(mnist), split="test"), str(file), "download it again")


def test_an_idx_file_of_another_type_is_refused(mnist, refused):
  file = mnist / "train-images-idx3-ubyte"
  file.write_bytes(_idx(LABELS))
  refused(
    Idx(path=str(mnist), split="train"), str(file), "3 dimensions", "00000801"
  )


def test_idx_files_with_too_few_labels_are_refused(mnist, refused):
  (mnist / "train-labels-idx1-ubyte").write_bytes(_idx(LABELS[:6]))
  refused(Idx(path=str(mnist), split="train"), str(mnist), "7 train", "6")


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"split": "val"}, "split is 'val'; pass 'train' or 'test'"),
    ({"split": "train", "image_size": 0}, "image_size is 0"),
    ({"split": "train", "resize": "cubic"}, "resize is 'cubic'"),
  ],
)
def test_wrong_fields_are_refused_at_construction(fields, words):
  with pytest.raises(ValueError, match=words):
    Digits(**fields)


def test_held_out_is_the_test_split():
  train = Digits(split="train")
  test = train.held_out()
  assert len(train) + len(test) == 1797


@pytest.mark.parametrize("crop", ["center", "none"])
def test_images_that_have_the_size_already_stay_bytes(crop):
  stored = Digits(split="train").take(np.array([3, 0]))
  source = Digits(split="train", image_size=8, crop=crop)
  assert source.image_dtype == np.uint8
  taken = source.take(np.array([3, 0]))
  for name in ("image", "label"):
    np.testing.assert_array_equal(taken[name], stored[name], strict=True)
  assert Digits(split="train").image_dtype == np.uint8
  assert Digits(split="train", image_size=4).image_dtype == np.float32
