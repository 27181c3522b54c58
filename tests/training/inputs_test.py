"""Batches are placed on the mesh before they are needed, in their order."""

import numpy as np
import pytest

from diffdistill.training.inputs import Placed


def batches(count):
  for number in range(count):
    yield {"image": np.full((8, 1), number)}


def numbers(batch):
  return np.unique(batch["image"], axis=None).tolist()


def test_batches_come_in_order_for_calls_of_any_length(mesh_of):
  placed = Placed(batches(9), mesh_of(8))
  assert numbers(placed.take(1)) == [0]
  placed.place(1)
  assert numbers(placed.take(1)) == [1]
  # The next call is longer, and then shorter, than was expected.
  placed.place(1)
  three = placed.take(3)
  assert three["image"].shape == (3, 8, 1)
  assert numbers(three) == [2, 3, 4]
  placed.place(3)
  assert [numbers(placed.take(1)) for _ in range(4)] == [[5], [6], [7], [8]]


def test_an_error_of_reading_is_raised_when_the_batch_is_needed(mesh_of):
  def broken():
    yield from batches(1)
    raise ValueError("a.png cannot be decoded")

  placed = Placed(broken(), mesh_of(1))
  assert numbers(placed.take(1)) == [0]
  placed.place(1)
  with pytest.raises(ValueError, match=r"a\.png cannot be decoded"):
    placed.take(1)
