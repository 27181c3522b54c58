"""Sheets of sample images."""

import io
import math
from collections.abc import Mapping

import numpy as np
from etils import epath
from jaxtyping import Array, UInt8
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from diffdistill.images import AnyImages, to_uint8
from diffdistill.ranges import Range, check_number
from diffdistill.system.files import write_atomically

# Lengths in pixels: the white gap between images, and the least side of a shown
# image, to which smaller images are enlarged.
_GAP = 2
_VISIBLE = 48
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
  pixels = _enlarged(images, scale)
  if columns is None:
    columns = math.ceil(math.sqrt(len(pixels)))
  check_number("columns", columns, _COUNT)
  return _as_pillow(_tiled(pixels, min(columns, len(pixels))))


def labelled_rows(rows: Mapping[str, Array | np.ndarray]) -> PillowImage.Image:
  """A picture with a row of images per model, and the model's name at its left.

  Args:
    rows: name -> images, all of one shape `b h w c`. The images of a column
      should come from the same noise.
  """
  shapes = {images.shape for images in rows.values()}
  if len(shapes) != 1:
    raise ValueError(
      f"rows must hold images of one shape, got {sorted(shapes)}; generate"
      " equally many for each name"
    )
  names = list(rows)
  columns = shapes.pop()[0]
  strips = [_tiled(_enlarged(rows[name], None), columns) for name in names]
  # Remove one of the two white gaps between neighbouring rows.
  body = np.concatenate([strip[_GAP:] for strip in strips])
  picture = _as_pillow(
    np.concatenate([np.full_like(strips[0][:_GAP], 255), body])
  )
  font = ImageFont.load_default()
  boxes = [font.getbbox(name) for name in names]
  margin = math.ceil(max(box[2] for box in boxes)) + 4 * _GAP
  whole = PillowImage.new(
    picture.mode, (margin + picture.width, picture.height), "white"
  )
  whole.paste(picture, (margin, 0))
  draw = ImageDraw.Draw(whole)
  step = len(strips[0]) - _GAP
  for index, (name, box) in enumerate(zip(names, boxes, strict=True)):
    top = _GAP + index * step + (step - _GAP - box[3]) // 2
    draw.text((2 * _GAP, top), name, fill="black", font=font)
  return whole


def save_png(image: PillowImage.Image, path: epath.PathLike) -> None:
  """Writes a PNG file, whole or not at all; `path` may be in a bucket."""
  write_atomically(path, as_png(image))


def as_png(image: PillowImage.Image) -> bytes:
  """The bytes of a PNG file."""
  data = io.BytesIO()
  image.save(data, "PNG", optimize=True)
  return data.getvalue()


def _enlarged(
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
    scale = math.ceil(_VISIBLE / min(height, width))
  check_number("scale", scale, _COUNT)
  return to_uint8(images).repeat(scale, axis=1).repeat(scale, axis=2)


def _tiled(
  pixels: UInt8[np.ndarray, "b h w c"], columns: int
) -> UInt8[np.ndarray, "H W c"]:
  """The images in a grid, with white gaps around each image."""
  count, height, width, channels = pixels.shape
  rows = math.ceil(count / columns)
  shape = (rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP)
  canvas = np.full((*shape, channels), 255, np.uint8)
  for index, image in enumerate(pixels):
    row, column = divmod(index, columns)
    top = _GAP + row * (height + _GAP)
    left = _GAP + column * (width + _GAP)
    canvas[top : top + height, left : left + width] = image
  return canvas


def _as_pillow(pixels: UInt8[np.ndarray, "H W c"]) -> PillowImage.Image:
  return PillowImage.fromarray(
    pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
  )
