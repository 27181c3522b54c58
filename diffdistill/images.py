"""Converts images to bytes, and bytes to images.

The bytes are rounded, not truncated: uint8 = round(127.5 (x + 1)), clipped to
0..255, ties to even. On average, truncation would make every pixel half a level
darker, which is enough to change a Frechet distance. So real and generated
images are both converted here before they are measured.
"""

from collections.abc import Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, UInt8

from diffdistill.arrays import Image

# Images in [-1, 1], as a JAX array on a device or a numpy array on the host.
AnyImages = Image | Float[np.ndarray, "b h w c"]
# Batches of images in [-1, 1]. They have no fixed shape, because the last batch
# may be shorter.
ImageStream = Iterable[Array | np.ndarray]


def to_host(images: AnyImages) -> np.ndarray:
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
  values = to_host(images).astype(np.float64)
  if not np.isfinite(values).all():
    bad = np.count_nonzero(~np.isfinite(values).all(axis=(1, 2, 3)))
    raise ValueError(
      f"{bad} of {len(values)} images hold NaN or infinity: the model has"
      " diverged; use an earlier checkpoint or a lower learning rate"
    )
  return np.clip(np.rint((values + 1) * 127.5), 0, 255).astype(np.uint8)


def from_uint8(
  images: UInt8[np.ndarray, "b h w c"],
) -> Float[np.ndarray, "b h w c"]:
  """Converts bytes to float32 images in [-1, 1]; `to_uint8` is the inverse."""
  return (images.astype(np.float64) / 127.5 - 1).astype(np.float32)
