"""The settings of an evaluation, such as the numbers of images and steps."""

import dataclasses
from typing import Annotated

from diffdistill.ranges import (
  BatchSize,
  Images,
  Range,
  Seed,
  Steps,
  check_ranges,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The settings of an evaluation.

  Args:
    num_images: the number of images that are judged for each row.
    num_steps: the numbers of steps at which the teacher is judged, one row
      each. A student is judged at its own number of steps, if it is in this
      list. Students are compared with the teacher's images at the most steps.
    batch_size: the number of images in a batch.
    seed: the seed of the noise.
    gap_images: the number of image pairs for the teacher gap; at most
      num_images.
    inception: the file of the FID network's weights. If empty, a classifier of
      the run judges, and its distance is no FID.
    reference: an .npz file of images, or of statistics by the FID network. If
      empty, the run's own data is the reference.
  """

  num_images: Images = 2000
  num_steps: tuple[Steps, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
  batch_size: BatchSize = 500
  seed: Seed = 0
  gap_images: Annotated[int, Range(1, 10**7)] = 500
  inception: str = ""
  reference: str = ""

  def __post_init__(self):
    if self.reference and not self.inception:
      raise ValueError(
        f"reference is {self.reference!r}, which only the FID network uses;"
        " pass the network's weights as inception too"
      )
    if not self.num_steps:
      raise ValueError("num_steps is (); pass one or more positive numbers")
    if len(set(self.num_steps)) < len(self.num_steps):
      raise ValueError(
        f"num_steps is {self.num_steps}; pass each number of steps once"
      )
    check_ranges(self)
