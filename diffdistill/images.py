"""Converts images to bytes, and bytes to images.

The bytes are rounded, not truncated: uint8 = round(127.5 (x + 1)), clipped to
0..255, ties to even. On average, truncation would make every pixel half a level
darker, which is enough to change a Frechet distance. So real and generated
images are both converted here before they are measured.

Images on a device are converted there, in float32. To give the same bytes as
float64, the device decides without rounding on which side of a half-way point a
value lies. Half-way points are where 127.5 x is a whole number:

  (1)  byte = floor(127.5 x) + 128,   x = top + rest

top holds the first 12 binary digits of x, so that 127.5 top and 127.5 rest are
exact, and so is their difference from a whole number nearby.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, UInt8

from diffdistill.arrays import Image

# Images in [-1, 1], as a JAX array on a device or a numpy array on the host.
AnyImages = Image | Float[np.ndarray, "b h w c"]
# Batches of images in [-1, 1]. They have no fixed shape, because the last batch
# may be shorter.
ImageStream = Iterable[Array | np.ndarray]


def to_host(images: Array | np.ndarray) -> np.ndarray:
  """Copies a whole batch to this host, with the parts of other processes."""
  if isinstance(images, np.ndarray):
    return images
  if images.is_fully_addressable or images.is_fully_replicated:
    return jax.device_get(images)
  return multihost_utils.process_allgather(images, tiled=True)


def to_uint8(images: AnyImages) -> UInt8[np.ndarray, "b h w c"]:
  """Converts images in [-1, 1] to bytes, rounded to the nearest and clipped.

  Raises:
    ValueError: if an image holds NaN or infinity.
  """
  if isinstance(images, np.ndarray):
    values, bad = _bytes_on_host(images)
  else:
    values, bad = _bytes_on_device(images)
  check_finite(int(jax.device_get(bad)), len(images))
  return to_host(values)


class Rounded(NamedTuple):
  """Images that were rounded to bytes and back, and how many are not finite.

  Attributes:
    images: float32 in [-1, 1], on the device if the given images are there.
    bad: the number of images that hold NaN or infinity; see `check_finite`.
  """

  images: Array | np.ndarray
  bad: Array | int


def rounded(images: AnyImages | UInt8[np.ndarray, "b h w c"]) -> Rounded:
  """Rounds images in [-1, 1] to bytes and back; bytes are only converted.

  Images on a device stay there, and this function does not wait for them.
  """
  if not isinstance(images, np.ndarray):
    return Rounded(*_rounded_on_device(images))
  if images.dtype == np.uint8:
    return Rounded(from_uint8(images), 0)
  values, bad = _bytes_on_host(images)
  return Rounded(from_uint8(values), bad)


def check_finite(bad: int, count: int) -> None:
  """Refuses images of a model that has diverged.

  Args:
    bad: the number of images that hold NaN or infinity.
    count: the number of images.

  Raises:
    ValueError: if `bad` is not 0.
  """
  if bad:
    raise ValueError(
      f"{bad} of {count} images hold NaN or infinity: the model has"
      " diverged; use an earlier checkpoint or a lower learning rate"
    )


def _bytes_on_host(
  images: Float[np.ndarray, "b h w c"],
) -> tuple[UInt8[np.ndarray, "b h w c"], int]:
  """The bytes of images, and how many images are not finite."""
  values = images.astype(np.float64)
  bad = 0
  if not np.isfinite(values).all():
    bad = int(np.count_nonzero(~np.isfinite(values).all(axis=(1, 2, 3))))
    values = np.nan_to_num(values, posinf=1, neginf=-1)
  whole = np.clip(np.rint((values + 1) * 127.5), 0, 255)
  return whole.astype(np.uint8), bad


def _levels(images: Image) -> tuple[Image, Array]:
  """The bytes of images as float32, and how many images are not finite."""
  x = images.astype(jnp.float32)
  # A sum shows NaN and infinity, and a matrix product is the cheapest sum.
  # The factor keeps sums of finite numbers finite.
  flat = x.reshape(len(x), math.prod(x.shape[1:]))
  ones = jnp.full(flat.shape[1], 1e-30)
  sums = jnp.matmul(flat, ones, precision="highest")
  bad = jnp.sum(~jnp.isfinite(sums))
  # x + 1 is 1 in float64 for these values, so they lie on the half-way point.
  x = jnp.where(jnp.abs(x) <= 2.0**-54, 0.0, x)
  digits = jax.lax.bitcast_convert_type(x, jnp.uint32) & np.uint32(0xFFFFF000)
  top = jax.lax.bitcast_convert_type(digits, jnp.float32)
  # Only this half-way point is so near that rounding can cross it.
  near = jnp.rint(127.5 * x)
  reached = (127.5 * top - near) + 127.5 * (x - top) >= 0
  return jnp.clip(near + jnp.where(reached, 128, 127), 0, 255), bad


@jax.jit
def _bytes_on_device(images: Image) -> tuple[Array, Array]:
  levels, bad = _levels(images)
  return levels.astype(jnp.uint8), bad


@jax.jit
def _rounded_on_device(images: Image) -> tuple[Image, Array]:
  """Rounds to bytes and back to the same float32 numbers as `from_uint8`."""
  levels, bad = _levels(images)
  # 1 / 255 is the sum of two numbers; the product with the first one is exact.
  first = np.float32(2057 / 2**19)
  rest = np.float32(1 / 255 - 2057 / 2**19)
  odd = 2 * levels - 255
  return odd * first + odd * rest, bad


def from_uint8(
  images: UInt8[np.ndarray, "b h w c"],
) -> Float[np.ndarray, "b h w c"]:
  """Converts bytes to float32 images in [-1, 1]; `to_uint8` is the inverse."""
  return (images.astype(np.float64) / 127.5 - 1).astype(np.float32)
