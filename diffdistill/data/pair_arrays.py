"""Draws the arrays of a shard of pairs from the teacher."""

import zlib
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Float16, Int

from diffdistill.data.pair_set import PairSet
from diffdistill.data.shards import Arrays
from diffdistill.images import to_uint8

Noise = Float[np.ndarray, "n h w c"]
Half = Float16[np.ndarray, "n h w c"]
# The arrays of pairs number `first` to `first + count - 1`: unit noise in
# float32, which was rounded to float16 before sampling; the teacher's images,
# which are clipped to [-1, 1]; and the labels, or None for pairs without
# labels.
Drawn = tuple[Noise, Float[np.ndarray, "n h w c"], Int[np.ndarray, " n"] | None]
Draw = Callable[[int, int], Drawn]
DrawNoise = Callable[[int, int], Noise]


def empty_arrays(pairs: PairSet, count: int) -> Arrays:
  """Returns empty arrays of the right types and shapes for a shard of pairs."""
  shape = (count, *pairs.image_shape)
  arrays: Arrays = {"image": np.empty(shape, np.uint8)}
  if pairs.store_noise:
    arrays["noise"] = np.empty(shape, np.float16)
  else:
    arrays["noise_checksum"] = np.zeros((), np.uint32)
  if pairs.num_classes:
    arrays["label"] = np.empty(count, np.int32)
  return arrays


def drawn_arrays(
  pairs: PairSet, numbers: range, draw: Draw, size: int
) -> Arrays:
  """Draws the arrays of the pairs with these numbers.

  Unlike the paper, which truncates, images are rounded to bytes, because
  truncation darkens images by half a grey level.

  Args:
    pairs: the settings of the pairs.
    numbers: the numbers of the pairs.
    draw: makes pairs from their numbers.
    size: the number of pairs drawn at once; 0 for all.

  Raises:
    ValueError: if an image is not finite, or float16 cannot hold the noise.
  """
  arrays = empty_arrays(pairs, len(numbers))
  noise = np.empty(arrays["image"].shape, np.float16)
  for rows, first, count in _parts(numbers, size):
    drawn, images, labels = draw(first, count)
    noise[rows] = _half(drawn)
    try:
      arrays["image"][rows] = to_uint8(images)
    except ValueError as error:
      raise ValueError(f"the teacher {pairs.teacher} drew: {error}") from error
    if pairs.num_classes:
      arrays["label"][rows] = labels
  if pairs.store_noise:
    arrays["noise"] = noise
  else:
    arrays["noise_checksum"] = checksum(noise)
  return arrays


def drawn_noise(
  pairs: PairSet, numbers: range, draw: DrawNoise, size: int
) -> Half:
  """Draws the noise of the pairs with these numbers; see `drawn_arrays`."""
  noise = np.empty((len(numbers), *pairs.image_shape), np.float16)
  for rows, first, count in _parts(numbers, size):
    noise[rows] = _half(draw(first, count))
  return noise


def checksum(noise: Half) -> np.ndarray:
  """Returns a checksum with which a change of the noise is noticed."""
  return np.array(zlib.crc32(noise.tobytes()), np.uint32)


def _parts(numbers: range, size: int) -> Iterator[tuple[slice, int, int]]:
  """Yields (rows of the shard, first number, count) for each draw."""
  size = size or len(numbers)
  for first in numbers[::size]:
    count = min(size, numbers.stop - first)
    start = first - numbers.start
    yield slice(start, start + count), first, count


def _half(noise: Noise) -> Half:
  """Converts float32 noise to float16, which must represent it exactly."""
  half = noise.astype(np.float16)
  if not np.array_equal(half.astype(np.float32), noise):
    raise ValueError(
      "float16 cannot hold the noise; round the noise to float16 before the"
      " teacher sees it"
    )
  return half
