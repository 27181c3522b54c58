"""How the models of a run are judged: how many images, in how many steps."""

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
  """How a comparison is made.

  Args:
    num_images: judged per row.
    num_steps: of the teacher's sampler, one row each; a student is judged at
      the steps it was made for where they are among these. The teacher's
      images at the most steps are what students are compared with.
    batch_size: images generated at a time.
    seed: of the noise.
    gap_images: pairs compared for the teacher gap, at most num_images.
    inception: the file of the FID network's weights; a classifier of the run
      judges where it is empty, and its distance is no FID.
    reference: an .npz of the FID network's statistics of the data, or of
      images; the run's own data where it is empty.
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
        f"reference is {self.reference!r}, which is for the FID network; pass"
        " its weights as inception too"
      )
    if not self.num_steps:
      raise ValueError("num_steps is (); pass one or more positive numbers")
    if len(set(self.num_steps)) < len(self.num_steps):
      raise ValueError(
        f"num_steps is {self.num_steps}; pass each number of steps once"
      )
    check_ranges(self)
