"""A sealed file gives back its arrays, and every flipped bit is detected."""

import io

import numpy as np
import pytest

from diffdistill.judging.sealed import seal, unseal

ARRAYS = {
  "row": np.array("some words"),
  "shown": np.arange(12, dtype=np.uint8).reshape(3, 2, 2),
  "target": np.zeros((0, 2), np.float32),
}


def test_sealed_arrays_come_back_and_numpy_can_read_them():
  data = seal(ARRAYS)
  for found in (unseal(data), np.load(io.BytesIO(data))):
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
      np.testing.assert_array_equal(found[name], array, strict=True)


def test_every_flipped_bit_of_a_sealed_file_is_detected():
  data = seal(ARRAYS)
  for place in range(8 * len(data)):
    flipped = bytearray(data)
    flipped[place // 8] ^= 1 << place % 8
    with pytest.raises(ValueError, match="it is damaged"):
      unseal(bytes(flipped))


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"0"])
def test_a_cut_or_longer_sealed_file_is_detected(change):
  for data in (change(seal(ARRAYS)), b""):
    with pytest.raises(ValueError, match="it is damaged"):
      unseal(data)
