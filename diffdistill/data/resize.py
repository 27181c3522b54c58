"""Resizes any image to the square that is trained on.

Students must see data that is prepared as it was for their teacher. Progressive
Distillation and moment matching (Google) crop the centre square along the short
side, then resize ImageNet to 64 by area and LSUN to 128 by antialiased
bilinear, and do not round the result back to bytes.
"""

import functools

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image as PillowImage

METHODS = ("area", "bilinear")
CROPS = ("center", "none")

# uint8 or float32, in [0, 255].
Pixels = Shaped[np.ndarray, "h w c"]
Fitted = Shaped[np.ndarray, "size_h size_w c"]


def check_fit(method: str, crop: str) -> None:
  """Refuses an unknown way of resizing or cropping.

  Raises:
    ValueError: for an unknown method or crop.
  """
  if method not in METHODS:
    raise ValueError(f"resize is {method!r}; pass one of {', '.join(METHODS)}")
  if crop not in CROPS:
    raise ValueError(f"crop is {crop!r}; pass one of {', '.join(CROPS)}")


def fit(image: Pixels, size: int | None, method: str, crop: str) -> Fitted:
  """The image cropped and resized to (size, size, c), float32 in [0, 255].

  Args:
    image: shape `h w c`, in [0, 255].
    size: side of the result; None leaves the image as it is.
    method: "area" or "bilinear".
    crop: "center" keeps the centre square; "none" stretches instead.
  """
  if size is None:
    return image
  if crop == "center":
    image = center_crop(image)
  resize = resize_area if method == "area" else resize_bilinear
  return np.clip(resize(image, size), 0, 255)


def center_crop(image: Pixels) -> Fitted:
  """The centre square along the short side; the odd pixel goes to the end."""
  height, width, _ = image.shape
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  return image[top : top + side, left : left + side]


def resize_area(image: Pixels, size: int) -> Float[np.ndarray, "size size c"]:
  """Each pixel is the mean over the area it covers, fractions included.

  Pillow's BOX takes whole source pixels only, so it agrees where the ratio is
  an integer and is off by up to tens of levels at 375 -> 64.
  """
  height, width, channels = image.shape
  pixels = image.astype(np.float32)
  rows = _coverage(height, size) @ pixels.reshape(height, width * channels)
  return _coverage(width, size) @ rows.reshape(size, width, channels)


def resize_bilinear(
  image: Pixels, size: int
) -> Float[np.ndarray, "size size c"]:
  """Antialiased bilinear: the triangle filter widens as the image shrinks."""
  pixels = image.astype(np.float32)
  channels = [
    np.asarray(
      PillowImage.fromarray(np.ascontiguousarray(channel)).resize(
        (size, size), PillowImage.Resampling.BILINEAR
      )
    )
    for channel in np.moveaxis(pixels, -1, 0)
  ]
  return np.stack(channels, axis=-1)


# Photographs come in hundreds of sizes, most of them rare: cache the common.
@functools.lru_cache(maxsize=256)
def _coverage(old: int, new: int) -> Float[np.ndarray, "new old"]:
  """Row i: the share of each old pixel in new pixel i; rows sum to one."""
  edges = np.arange(new + 1) * (old / new)
  pixels = np.arange(old)
  right = np.minimum(edges[1:, None], pixels + 1)
  left = np.maximum(edges[:-1, None], pixels)
  return (np.maximum(right - left, 0) * (new / old)).astype(np.float32)
