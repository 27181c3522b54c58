"""Resizes any image to the square that training uses.

A student must see data that is prepared in the same way as for its teacher.
Progressive Distillation and moment matching (Google) crop the centre square
along the short side. Then they resize ImageNet to 64 pixels by area, and LSUN
to 128 pixels by antialiased bilinear interpolation, and do not round to bytes.
"""

import functools

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image as PillowImage

METHODS = ("area", "bilinear")
CROPS = ("center", "none")

# Pixel values: uint8 or float32, in [0, 255].
Pixels = Shaped[np.ndarray, "h w c"]
Fitted = Shaped[np.ndarray, "size_h size_w c"]


def check_fit(method: str, crop: str) -> None:
  """Refuses an unknown method of resizing or cropping.

  Raises:
    ValueError: if the method or the crop is unknown.
  """
  if method not in METHODS:
    raise ValueError(f"resize is {method!r}; pass one of {', '.join(METHODS)}")
  if crop not in CROPS:
    raise ValueError(f"crop is {crop!r}; pass one of {', '.join(CROPS)}")


def fit(image: Pixels, size: int | None, method: str, crop: str) -> Fitted:
  """Crops and resizes an image to (size, size, c), float32 in [0, 255].

  Args:
    image: the image, of shape `h w c`, in [0, 255].
    size: the side of the result; None leaves the image unchanged.
    method: "area" or "bilinear".
    crop: "center" keeps the centre square; "none" stretches the image.
  """
  if size is None:
    return image
  if crop == "center":
    image = center_crop(image)
  if image.shape[:2] == (size, size):
    return image.astype(np.float32)
  resize = resize_area if method == "area" else resize_bilinear
  return np.clip(resize(image, size), 0, 255)


def center_crop(image: Pixels) -> Fitted:
  """Crops the centre square of an image; an odd pixel is cut at the end."""
  height, width, _ = image.shape
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  return image[top : top + side, left : left + side]


def resize_area(image: Pixels, size: int) -> Float[np.ndarray, "size size c"]:
  """Resizes by area: each new pixel is the mean of the area that it covers.

  Fractions of pixels count. Pillow's BOX takes whole source pixels only: it
  gives the same result for integer ratios, but differs by tens of grey levels
  for 375 -> 64.
  """
  height, width, channels = image.shape
  pixels = image.astype(np.float32)
  rows = _coverage(height, size) @ pixels.reshape(height, width * channels)
  return _coverage(width, size) @ rows.reshape(size, width, channels)


def resize_bilinear(
  image: Pixels, size: int
) -> Float[np.ndarray, "size size c"]:
  """Resizes bilinearly, with a wider filter if the image shrinks."""
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


# Cache matrices, because photographs have hundreds of sizes, some of them
# often.
@functools.lru_cache(maxsize=256)
def _coverage(old: int, new: int) -> Float[np.ndarray, "new old"]:
  """Returns a matrix: row i holds each old pixel's share in new pixel i."""
  edges = np.arange(new + 1) * (old / new)
  pixels = np.arange(old)
  right = np.minimum(edges[1:, None], pixels + 1)
  left = np.maximum(edges[:-1, None], pixels)
  return (np.maximum(right - left, 0) * (new / old)).astype(np.float32)
