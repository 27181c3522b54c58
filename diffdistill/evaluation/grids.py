"""Sheets of sample images, without any text; labelled.py adds labels."""

import io
import math

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image as PillowImage

from diffdistill.images import AnyImages, to_uint8
from diffdistill.ranges import Range, check_number
from diffdistill.system.files import write_atomically

# Lengths in pixels: the white gap between images, and the least side of a shown
# image, to which smaller images are enlarged.
GAP = 2
VISIBLE = 48
_COUNT = Range(1, 10**6)


def sheet(
  images: AnyImages, columns: int | None = None, scale: int | None = None
) -> PillowImage.Image:
  """A picture of images in [-1, 1] in rows and columns on white.

  Args:
    images: the images of shape `b h w c`, grey (c = 1) or RGB (c = 3).
    columns: the number of images in a row; by default the picture is nearly
      square.
    scale: how often each pixel is repeated in both directions; by default the
      shorter side of an image becomes at least 48 pixels.
  """
  pixels = enlarged(images, scale)
  if columns is None:
    columns = math.ceil(math.sqrt(len(pixels)))
  check_number("columns", columns, _COUNT)
  return as_pillow(tiled(pixels, min(columns, len(pixels))))


def save_png(image: PillowImage.Image, path: epath.PathLike) -> None:
  """Writes a PNG file, whole or not at all; `path` may be in a bucket."""
  write_atomically(path, as_png(image))


def as_png(image: PillowImage.Image) -> bytes:
  """The bytes of a PNG file."""
  data = io.BytesIO()
  image.save(data, "PNG", optimize=True)
  return data.getvalue()


def enlarged(
  images: AnyImages, scale: int | None
) -> UInt8[np.ndarray, "b h2 w2 c"]:
  """The images as bytes, each pixel repeated `scale` times in both axes."""
  count, height, width, channels = images.shape
  if channels not in (1, 3) or min(count, height, width) < 1:
    raise ValueError(
      f"can draw grey or RGB images of shape (b, h, w, 1 or 3), got"
      f" {tuple(images.shape)}"
    )
  if scale is None:
    scale = math.ceil(VISIBLE / min(height, width))
  check_number("scale", scale, _COUNT)
  return to_uint8(images).repeat(scale, axis=1).repeat(scale, axis=2)


def tiled(
  pixels: UInt8[np.ndarray, "b h w c"], columns: int
) -> UInt8[np.ndarray, "H W c"]:
  """The images in a grid, with white gaps around each image."""
  count, height, width, channels = pixels.shape
  rows = math.ceil(count / columns)
  shape = (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP)
  canvas = np.full((*shape, channels), 255, np.uint8)
  for index, image in enumerate(pixels):
    row, column = divmod(index, columns)
    top = GAP + row * (height + GAP)
    left = GAP + column * (width + GAP)
    canvas[top : top + height, left : left + width] = image
  return canvas


def as_pillow(pixels: UInt8[np.ndarray, "H W c"]) -> PillowImage.Image:
  """The pixels as a picture, grey or RGB."""
  return PillowImage.fromarray(
    pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
  )
