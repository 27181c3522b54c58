"""Images of a model, as a caller wants them, and the sheets of such images."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8

from diffdistill.evaluation import grids, titles
from diffdistill.evaluation.labelled import (
  Labels,
  labelled_rows,
  labelled_sheet,
)
from diffdistill.evaluation.shown import Picture
from diffdistill.images import from_uint8
from diffdistill.ranges import (
  GUIDANCE,
  IN_A_ROW,
  LABEL,
  SAMPLES,
  SEED,
  STEPS,
  check_number,
  whole_number,
)

# The ranges of the whole numbers of a wish.
WHOLE = {
  "num_images": SAMPLES,
  "num_steps": STEPS,
  "seed": SEED,
  "label": LABEL,
  "interpolate": IN_A_ROW,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
  """The images that a caller wants to be drawn.

  Args:
    num_images: the number of images, or of rows if `interpolate` is set.
    num_steps: the number of sampler steps. None means the number that a student
      was made for, or the largest at which a teacher is judged.
    seed: the seed of the noise, in [0, 2^32).
    label: the class of all images; None means that classes are as frequent as
      in the data.
    guidance: the weight of the guidance. None means the config's weight for a
      teacher and for a student that is told one, and 0 for other models.
    interpolate: the number of images in a row, 2 or more, from one noise to
      another (Luhman & Luhman 2021 show 11). None draws independent images.

  Raises:
    ValueError: if a number is out of its range, or not whole where it must be.
  """

  num_images: int
  num_steps: int | None = None
  seed: int = 0
  label: int | None = None
  guidance: float | None = None
  interpolate: int | None = None

  def __post_init__(self):
    for name, allowed in WHOLE.items():
      value = getattr(self, name)
      if value is not None:
        # The dataclass is frozen, so that nothing else changes a wish.
        object.__setattr__(self, name, whole_number(name, value, allowed))
    if self.guidance is not None:
      check_number("guidance", self.guidance, GUIDANCE)

  @property
  def count(self) -> int:
    """The number of images to draw, in all rows together."""
    return self.num_images * (self.interpolate or 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
  """Images of a model.

  Args:
    images: the images.
    model: the name of the model.
    num_steps: the number of sampler steps.
    wish: the request for these images.
    labels: the class that the model was given for each image; None if the model
      has no classes.
    class_names: the names of the classes; empty if they have only numbers.
  """

  images: UInt8[np.ndarray, "n h w c"]
  model: str
  num_steps: int
  wish: Wish
  labels: Int[np.ndarray, " n"] | None
  class_names: tuple[str, ...] = ()

  def npz(self) -> bytes:
    """An .npz of arr_0, the images, and arr_1, the labels if there are any.

    These are the names in the files of Dhariwal & Nichol 2021
    (guided-diffusion), whose evaluator reads arr_0.
    """
    arrays = [self.images]
    if self.labels is not None:
      arrays.append(self.labels.astype(np.int64))
    data = io.BytesIO()
    np.savez_compressed(data, *arrays)
    return data.getvalue()

  @property
  def classes(self) -> tuple[str, ...]:
    """The class of each image in words; empty for a model without classes."""
    return titles.class_titles(self.labels, self.class_names)

  def sheet(self, *, plain: bool = False) -> Picture:
    """A picture of the images side by side, with a title and their classes.

    If the images are interpolated, each row leads from one noise to another.

    Args:
      plain: whether to draw the images alone, without any text.
    """
    wish, images = self.wish, from_uint8(self.images)
    if plain:
      return Picture(grids.as_png(grids.sheet(images, wish.interpolate)))
    facts = [f"seed {wish.seed}"]
    if wish.guidance is not None:
      facts.append(f"guidance {wish.guidance:g}")
    rows, columns, below = (), (), self.classes
    if wish.interpolate is not None:
      facts.append("each row from one noise to another")
      rows, below = below[:: wish.interpolate], ()
      ends = wish.interpolate - 1
      columns = [f"{round(100 * i / ends)} %" for i in range(ends + 1)]
    labels = Labels(
      title=titles.sheet_title(self.model, self.num_steps, *facts),
      rows=rows,
      columns=columns,
      images=below,
    )
    sheet = labelled_sheet(images, labels, wish.interpolate)
    return Picture(grids.as_png(sheet))


def compared_sheet(drawn: Sequence[Drawn], *, plain: bool = False) -> Picture:
  """A picture with a row of images for each model; all rows of one wish.

  Args:
    drawn: the images of each model.
    plain: whether to draw the images alone, without any text.
  """
  images = [from_uint8(one.images) for one in drawn]
  count = len(images[0])
  if plain:
    return Picture(grids.as_png(grids.sheet(np.concatenate(images), count)))
  names = titles.row_titles([(one.model, one.num_steps) for one in drawn])
  columns = titles.column_titles([one.classes for one in drawn], count)
  if drawn[0].wish.interpolate is not None:
    columns = []  # most images are between two noises
  labels = Labels(title=titles.SAME_NOISE, columns=columns)
  rows = dict(zip(names, images, strict=True))
  return Picture(grids.as_png(labelled_rows(rows, labels)))
