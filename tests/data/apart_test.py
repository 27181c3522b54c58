"""Tests that a tenth of each class is set apart, and always the same images."""

import numpy as np
import pytest

from diffdistill.data.apart import num_nonempty_classes, set_apart
from diffdistill.data.packed import Npz


@pytest.fixture
def source_of(tmp_path):
  """Returns a function that makes sources; two pixels of an image number it."""

  def make(labels):
    numbers = np.arange(len(labels))
    image = np.stack([numbers // 256, numbers % 256], axis=1)
    path = tmp_path / "data.npz"
    np.savez(
      path,
      image=image.astype(np.uint8).reshape(-1, 1, 2, 1),
      label=np.array(labels),
    )
    return Npz(path=str(path), split="train")

  return make


def test_a_tenth_of_each_class_is_set_apart(source_of):
  labels = np.random.default_rng(0).permutation(
    np.repeat([0, 1, 2], [200, 40, 30])
  )
  rest, apart = set_apart(source_of(labels))
  assert np.bincount(apart.labels()).tolist() == [20, 4, 3]
  together = np.concatenate([rest.indices, apart.indices])
  assert sorted(together) == list(range(270))
  again = set_apart(source_of(labels))[1]
  np.testing.assert_array_equal(again.indices, apart.indices)


def test_small_classes_give_one_image_and_single_images_none(source_of):
  rest, apart = set_apart(source_of([0, 1, 1, 2, 2, 2, 5]))
  assert apart.labels().tolist() == [1, 2]
  assert set(rest.labels()) == {0, 1, 2, 5}
  _, nothing = set_apart(source_of([0, 1, 2]))
  assert len(nothing) == 0


def test_a_part_takes_the_images_of_the_whole(source_of):
  source = source_of(np.arange(600) % 2)
  _, apart = set_apart(source)
  assert (len(apart), apart.num_classes) == (60, 2)
  assert (apart.image_shape, apart.image_dtype) == ((1, 2, 1), np.uint8)
  taken = apart.take(np.array([59, 0]))
  numbers = taken["image"][:, 0, :, 0] @ np.array([256, 1], np.int64)
  np.testing.assert_array_equal(numbers, apart.indices[[59, 0]])
  np.testing.assert_array_equal(taken["label"], apart.labels()[[59, 0]])
  assert apart.held_out() is None
  apart.check()


@pytest.mark.parametrize(
  ("labels", "count"), [([0, 0], 1), ([3, 3, 3], 1), ([0, 3], 2)]
)
def test_classes_without_images_are_not_counted(source_of, labels, count):
  assert num_nonempty_classes(source_of(labels)) == count
