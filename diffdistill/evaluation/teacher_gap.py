"""How far a student's images are from its teacher's on the same noise."""

import dataclasses
import itertools
import math

import numpy as np

from diffdistill.images import ImageStream, to_host


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherGap:
  """The distance between paired images.

  Attributes:
    rms: root mean square difference over pixels, channels and images, in units
      of the image range [-1, 1]. A perfect student has 0; one grey level is
      2/255.
    relative: rms divided by the root mean square deviation of the teacher's
      images from their mean image. A student that always draws the mean image
      has 1. NaN if all images of the teacher are equal.
    num_images: the number of compared pairs.
  """

  rms: float
  relative: float
  num_images: int


def teacher_gap(student: ImageStream, teacher: ImageStream) -> TeacherGap:
  """Measures how far a student's images are from its teacher's, in float64.

  Use it for deterministic samplers with the same noise and labels (the same
  seed of `Generator`). Images are compared as floats, not as bytes.

  Args:
    student: batches of images in [-1, 1].
    teacher: batches of the same shapes, from the same noise.

  Raises:
    ValueError: if the streams differ in length or shape, or are empty.
  """
  count, squares, spread, mean = 0, 0.0, 0.0, None
  for ours, theirs in itertools.zip_longest(student, teacher):
    if ours is None or theirs is None:
      short = "student" if ours is None else "teacher"
      raise ValueError(
        f"the {short} gave fewer batches than the other after {count} images;"
        " use the same num_images and batch_size for both"
      )
    if ours.shape != theirs.shape:
      raise ValueError(
        f"student images are {ours.shape} but the teacher's {theirs.shape};"
        " use the same batch_size and image_shape for both"
      )
    ours = to_host(ours).astype(np.float64)
    theirs = to_host(theirs).astype(np.float64)
    squares += ((ours - theirs) ** 2).sum()
    # Update the mean image and the squared deviation from it, pairwise.
    batch_mean = theirs.mean(axis=0)
    mean = np.zeros_like(batch_mean) if mean is None else mean
    total = count + len(theirs)
    step = batch_mean - mean
    spread += ((theirs - batch_mean[None]) ** 2).sum()
    spread += (step**2).sum() * count * len(theirs) / total
    mean = mean + step * (len(theirs) / total)
    count = total
  if mean is None:
    raise ValueError("cannot compare 0 images; generate some")
  rms = math.sqrt(squares / (count * mean.size))
  relative = math.sqrt(squares / spread) if spread > 0 else math.nan
  return TeacherGap(rms=rms, relative=relative, num_images=count)
