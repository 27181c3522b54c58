"""Sets some training images apart, on which a classifier can be tested."""

import dataclasses

import numpy as np

from diffdistill.data.sources import Examples, Indices, Labels, Source

# One image in this many is set apart, in each class.
OF_EACH = 10


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Part:
  """A source with some of the images of another source.

  Args:
    source: the whole source.
    indices: the indices of this part's images in the whole source, in order.
  """

  source: Source
  indices: Indices

  def check(self) -> None:
    """Checks the whole source; see `Source.check`."""
    self.source.check()

  def __len__(self) -> int:
    return len(self.indices)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    return self.source.image_shape

  @property
  def image_dtype(self) -> np.dtype:
    return self.source.image_dtype

  @property
  def num_classes(self) -> int:
    return self.source.num_classes

  @property
  def label_counts(self) -> tuple[int, ...]:
    """The number of images of each class in this part."""
    counts = np.bincount(self.labels(), minlength=self.num_classes)
    return tuple(counts.tolist())

  @property
  def class_names(self) -> tuple[str, ...]:
    return self.source.class_names

  @property
  def left_out(self) -> tuple[str, ...]:
    return self.source.left_out

  def digests(self) -> dict[str, str]:
    """Returns the digests of the whole source."""
    return self.source.digests()

  def labels(self) -> Labels:
    """Returns the label of every image of this part."""
    return self.source.labels()[self.indices]

  def take(self, indices: Indices) -> Examples:
    """Returns the images and labels at `indices` of this part, in order."""
    return self.source.take(self.indices[indices])

  def held_out(self) -> Source | None:
    """Returns None, because a part has no test split."""
    return None


def set_apart(source: Source) -> tuple[Part, Part]:
  """Divides a source into two parts: (images to train on, images to test on).

  The second part has a tenth of the images of each class, evenly spaced, so the
  same data is always divided in the same way. Of a class of 2 to 9 images it
  has one image, and of a class of one image it has none.
  """
  labels = source.labels()
  apart = np.zeros(len(labels), bool)
  for label in np.unique(labels):
    (members,) = np.nonzero(labels == label)
    if len(members) > 1:
      count = max(1, len(members) // OF_EACH)
      places = (np.arange(count) + 0.5) * len(members) / count
      apart[members[places.astype(np.int64)]] = True
  rest, measured = (np.flatnonzero(chosen) for chosen in (~apart, apart))
  return (
    Part(source=source, indices=rest),
    Part(source=source, indices=measured),
  )


def num_nonempty_classes(source: Source) -> int:
  """Counts the classes that have images."""
  return sum(count > 0 for count in source.label_counts)
