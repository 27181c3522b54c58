"""Reads sources too large for memory: decodes an image when it is taken."""

import abc
import dataclasses
import functools
from collections.abc import Sequence
from concurrent import futures
from typing import Annotated

import numpy as np
from jaxtyping import Shaped

from diffdistill.data.resize import check_fit, fit
from diffdistill.data.sources import Examples, Indices, Labels
from diffdistill.ranges import Range, Side, SomeClasses, check_ranges

Decoded = tuple[Shaped[np.ndarray, "h w c"], int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Streamed(abc.ABC):
  """A source that decodes its images on a few threads.

  Args:
    split: the name of the split.
    image_size: the side of the square images; None leaves images unchanged.
    resize: "area" or "bilinear" (antialiased).
    crop: "center" (the centre square) or "none" (stretch).
    num_threads: the number of images that are decoded at the same time.
    classes: the number of classes. With it, a run can be built on a machine
      without the data; `check()` compares it with the data. If None, it is read
      from the data.
  """

  split: str
  image_size: Side | None = None
  resize: str = "area"
  crop: str = "center"
  num_threads: Annotated[int, Range(1, 1024)] = 8
  classes: SomeClasses | None = None

  def __post_init__(self):
    if not self.split:
      raise ValueError("split is empty; pass 'train' or 'test'")
    check_ranges(self)
    check_fit(self.resize, self.crop)

  def take(self, indices: Indices) -> Examples:
    """Returns the images and labels at `indices`, in that order.

    Raises:
      ValueError: if an image cannot be decoded, or a label is outside [0,
        num_classes).
    """
    decoded = list(self._threads.map(self._fitted, indices.tolist()))
    if not decoded:
      return {
        "image": np.empty((0, *self.image_shape), self.image_dtype),
        "label": np.empty(0, np.int32),
      }
    images, labels = zip(*decoded, strict=True)
    self._check_labels(indices.tolist(), labels)
    return {"image": np.stack(images), "label": np.array(labels, np.int32)}

  def _check_labels(
    self, indices: Sequence[int], labels: Sequence[int]
  ) -> None:
    for index, label in zip(indices, labels, strict=True):
      if not 0 <= label < self.num_classes:
        raise ValueError(
          f"example {index} of {self} has label {label}; number the"
          f" {self.num_classes} classes from 0"
        )

  @property
  def image_dtype(self) -> np.dtype:
    """The type of images: float32 if image_size is given, otherwise uint8."""
    return np.dtype(np.uint8 if self.image_size is None else np.float32)

  @property
  def num_classes(self) -> int:
    return self._count_classes() if self.classes is None else self.classes

  @functools.cached_property
  def label_counts(self) -> tuple[int, ...]:
    """The number of images of each class."""
    counts = np.bincount(self.labels(), minlength=self.num_classes)
    return tuple(counts.tolist())

  def _check_classes(self) -> None:
    found = self._count_classes()
    if self.classes not in (None, found):
      raise ValueError(
        f"classes is {self.classes}, but the data has {found}; pass {found}"
      )

  @abc.abstractmethod
  def _count_classes(self) -> int:
    """Counts the classes in the data."""

  @abc.abstractmethod
  def labels(self) -> Labels:
    """Returns the label of every image, in order."""

  @property
  @abc.abstractmethod
  def image_shape(self) -> tuple[int, int, int]: ...

  @abc.abstractmethod
  def _decode(self, index: int) -> Decoded:
    """Reads the stored image at an index, in [0, 255], and its label."""

  def _fitted(self, index: int) -> Decoded:
    image, label = self._decode(index)
    return fit(image, self.image_size, self.resize, self.crop), label

  @functools.cached_property
  def _threads(self) -> futures.ThreadPoolExecutor:
    return futures.ThreadPoolExecutor(
      self.num_threads, thread_name_prefix="decode"
    )


def one_line(error: Exception) -> str:
  """Returns the message of an error; the name of its class if that is empty."""
  return " ".join(str(error).split()) or type(error).__name__
