"""Sheets of images with a title and with labels, for a reader.

The command line, the API, trainings and reports all draw their sheets here.
`grids.sheet` draws the images alone, for a program that reads the pixels.
"""

import contextlib
import dataclasses
import importlib.util
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Array
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from diffdistill.evaluation.grids import GAP, as_pillow, enlarged, tiled
from diffdistill.images import AnyImages, to_host

# Letters have at least LETTERS pixels, and more for larger images: the side of
# an image divided by SHARE.
LETTERS, SHARE = 12, 6
# The largest width of a row's label, and the least width at which a title is
# broken into lines, in heights of a letter.
MARGIN, TITLE = 20, 24
# The most lines of a label; the rest of a longer text is cut off.
ROW_LINES, OTHER_LINES = 3, 2
PAD = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
  """The texts of a sheet; each may be left out.

  Args:
    title: a text above the sheet.
    rows: a text at the left of each row.
    columns: a text above each column.
    images: a text below each image.
  """

  title: str = ""
  rows: Sequence[str] = ()
  columns: Sequence[str] = ()
  images: Sequence[str] = ()


def labelled_sheet(
  images: AnyImages, labels: Labels, columns: int | None = None
) -> PillowImage.Image:
  """A picture of images in [-1, 1] in rows and columns, with labels.

  Args:
    images: the images of shape `b h w c`, grey (c = 1) or RGB (c = 3).
    labels: the texts.
    columns: the number of images in a row; by default the picture is nearly
      square.
  """
  pixels = enlarged(images, None)
  count, height, width, _ = pixels.shape
  columns = min(columns or math.ceil(math.sqrt(count)), count)
  text = _Text(max(LETTERS, round(min(height, width) / SHARE)))
  below = [text.fit(each, width, OTHER_LINES) for each in labels.images]
  caption = text.height(below)
  pixels = np.pad(
    pixels, ((0, 0), (0, caption), (0, 0), (0, 0)), constant_values=255
  )
  body = as_pillow(tiled(pixels, columns))
  left = [text.fit(each, MARGIN * text.size, ROW_LINES) for each in labels.rows]
  margin = text.width(left) + 2 * PAD if left else 0
  above = [text.fit(each, width, OTHER_LINES) for each in labels.columns]
  room = max(margin + body.width, TITLE * text.size)
  title = text.fit(labels.title, room - 2 * PAD, ROW_LINES)
  first = text.height([title]) if title else 0
  top = first + text.height(above)
  whole = max(margin + body.width, text.width([title]) + 2 * PAD)
  sheet = PillowImage.new(body.mode, (whole, top + body.height), "white")
  sheet.paste(body, (margin, top))
  draw = ImageDraw.Draw(sheet)
  text.write(draw, title, (PAD, PAD // 2), "la")
  step, across = height + caption + GAP, width + GAP
  for i, lines in enumerate(left):
    middle = top + GAP + i * step + (height - text.line * len(lines)) // 2
    text.write(draw, lines, (PAD, middle), "la")
  for i, lines in enumerate(above):
    x = margin + GAP + i * across + width // 2
    # The last line of each label is next to the images.
    text.write(draw, lines, (x, top - text.line * len(lines)), "ma")
  for i, lines in enumerate(below):
    row, column = divmod(i, columns)
    x = margin + GAP + column * across + width // 2
    text.write(draw, lines, (x, top + GAP + row * step + height), "ma")
  return sheet


def labelled_rows(
  rows: Mapping[str, Array | np.ndarray], labels: Labels
) -> PillowImage.Image:
  """A picture with a row of images per model, and its title at the left.

  Args:
    rows: title -> images, all of one shape `b h w c`. The images of a column
      should come from the same noise.
    labels: the other texts.
  """
  shapes = {images.shape for images in rows.values()}
  if len(shapes) != 1:
    raise ValueError(
      f"rows must hold images of one shape, got {sorted(shapes)}; generate"
      " equally many for each name"
    )
  every = np.concatenate([to_host(images) for images in rows.values()])
  labels = dataclasses.replace(labels, rows=tuple(rows))
  return labelled_sheet(every, labels, shapes.pop()[0])


class _Text:
  """Fits texts into lines, and writes them.

  Args:
    size: the height of a letter in pixels.
  """

  def __init__(self, size: int):
    self.size = size
    self._font = _font(size)
    self.line = math.ceil(sum(self._font.getmetrics()))

  def fit(self, text: str, width: int, most: int) -> list[str]:
    """Breaks a text between words into at most so many lines of this width."""
    lines: list[str] = []
    for word in text.split():
      if lines and self._length(f"{lines[-1]} {word}") <= width:
        lines[-1] += f" {word}"
      else:
        lines.append(word)
    if len(lines) > most:
      lines = [*lines[: most - 1], f"{lines[most - 1]}…"]
    return [self._cut(line, width) for line in lines]

  def width(self, labels: Sequence[Sequence[str]]) -> int:
    """The width of the longest line."""
    lengths = [self._length(line) for lines in labels for line in lines]
    return math.ceil(max(lengths, default=0))

  def height(self, labels: Sequence[Sequence[str]]) -> int:
    """The height of the label with the most lines; 0 without labels."""
    most = max((len(lines) for lines in labels), default=0)
    return most * self.line + PAD * bool(most)

  def write(
    self,
    draw: ImageDraw.ImageDraw,
    lines: Sequence[str],
    place: tuple[int, int],
    anchor: str,
  ) -> None:
    """Writes lines from a place downwards."""
    x, y = place
    for i, line in enumerate(lines):
      draw.text((x, y + i * self.line), line, "black", self._font, anchor)

  def _length(self, text: str) -> float:
    return self._font.getlength(text)

  def _cut(self, line: str, width: int) -> str:
    if self._length(line) <= width:
      return line
    line = line.rstrip("…")
    while line and self._length(f"{line}…") > width:
      line = line[:-1]
    return f"{line}…"


def _font(size: int) -> ImageFont.FreeTypeFont:
  """The letters of the charts; without matplotlib, those of Pillow.

  Pillow's own letters are Latin without accents.
  """
  # Find the file without importing matplotlib, which would take a while.
  found = importlib.util.find_spec("matplotlib")
  if found is not None and found.origin is not None:
    fonts = pathlib.Path(found.origin).parent / "mpl-data" / "fonts" / "ttf"
    with contextlib.suppress(OSError):
      return ImageFont.truetype(fonts / "DejaVuSans.ttf", size)
  font = ImageFont.load_default(size)
  assert isinstance(font, ImageFont.FreeTypeFont)  # because a size is given
  return font
