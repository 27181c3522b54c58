"""Makes shuffled batches of a source; a batch depends only on its step.

No position is stored, so a run resumes with the batch of its step. The indices
of a batch are a slice of the permutation of its epoch. All images of a batch
are taken from the source in one call and are not scaled here. Grain prepares
batches ahead.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Annotated

import grain
import numpy as np

from diffdistill.data.sources import Examples, Indices, Source
from diffdistill.ranges import (
  BATCH_SIZE,
  STEP,
  BatchSize,
  Range,
  Seed,
  check_number,
  check_ranges,
)

OF_EPOCH, OF_FLIPS = 0, 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
  """Endless batches; each process gets its rows of the global batch.

  The global batch of a step depends only on (source, batch_size, seed, flip,
  step). It is the same bit for bit, however processes share its rows. Every
  epoch visits each image once, in an order of its own. A batch may hold the end
  of one epoch and the beginning of the next.

  Args:
    source: the source of the images; it is checked at construction.
    batch_size: the number of rows of the global batch; it may be larger than
      the source.
    seed: the seed of the order and of the flips.
    flip: whether each image is mirrored left to right with probability 1/2.
    labels: whether batches hold labels.
    rows: the rows of the global batch that this process gets; by default all.
    num_threads: the number of threads that prepare batches in `iterate`; 0 for
      none.
    prefetch: the number of batches that `iterate` keeps ready.

  Raises:
    ValueError: if a field is out of range, the source is empty, or its
      `check()` refuses the data.
  """

  source: Source
  batch_size: BatchSize
  seed: Seed
  flip: bool = False
  labels: bool = True
  rows: tuple[int, ...] | None = None
  num_threads: Annotated[int, Range(0, 1024)] = 2
  prefetch: Annotated[int, Range(0, 1024)] = 4

  def __post_init__(self):
    check_ranges(self)
    check_rows(self.rows, self.batch_size)
    _check_source(self.source)

  def batch(self, step: int) -> Examples:
    """Returns this process's rows of the global batch of a step.

    The device scales and mirrors the images; see training/augment.py.

    Returns:
      "image": uint8, or float32 if the source resizes, in [0, 255], shape
      `b h w c` with b the number of rows; "label" (if asked for): int32,
      shape `b`; "flip" (if there are flips): which images to mirror, bool,
      shape `b`.
    """
    check_number("step", step, STEP)
    rows = slice(None) if self.rows is None else list(self.rows)
    batch = self.source.take(self._indices(step)[rows])
    if self.flip:
      # Draw flips for the global batch, so that they do not depend on the
      # number of processes.
      random = np.random.default_rng([self.seed, OF_FLIPS, step])
      batch["flip"] = (random.random(self.batch_size) < 0.5)[rows]
    if not self.labels:
      del batch["label"]
    return batch

  def iterate(self, start: int) -> Iterator[Examples]:
    """Yields batch(start), batch(start + 1), ..., prepared ahead by threads."""
    check_number("step", start, STEP)
    options = grain.ReadOptions(
      num_threads=self.num_threads, prefetch_buffer_size=self.prefetch
    )
    steps = grain.MapDataset.range(start, sys.maxsize)
    return iter(steps.map(self.batch).to_iter_dataset(options))

  def _indices(self, step: int) -> Indices:
    """Returns a global batch's indices, which come from one epoch or more."""
    size, parts = len(self.source), []
    first, end = step * self.batch_size, (step + 1) * self.batch_size
    while first < end:
      epoch, start = divmod(first, size)
      parts.append(self._order(epoch)[start : start + end - first])
      first += len(parts[-1])
    return np.concatenate(parts)

  @functools.cached_property
  def _order(self) -> Callable[[int], Indices]:
    """Returns a function that gives the order of an epoch, and caches two."""

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> Indices:
      random = np.random.default_rng([self.seed, OF_EPOCH, epoch])
      return random.permutation(len(self.source))

    return order


def once(source: Source, batch_size: int) -> Iterator[Examples]:
  """Yields every example exactly once, in order, for reference statistics.

  Examples are as in training, but not shuffled and not flipped: "image" is
  float32 in [-1, 1] of shape `b h w c`, "label" is int32 of shape `b`. The last
  batch may be short.

  Raises:
    ValueError: if batch_size is below 1, the source is empty, or its `check()`
      refuses the data; before the first batch.
  """
  return map(_scale, _taken(source, batch_size))


def images_once(source: Source, batch_size: int) -> Iterator[np.ndarray]:
  """Yields all images once, in order, batch by batch, to measure them as bytes.

  If all values of a batch are whole numbers, as in a folder whose pictures need
  no resizing, the batch is bytes. Otherwise it is as `once` yields it.

  Raises:
    ValueError: in the same cases as `once`.
  """
  for examples in _taken(source, batch_size):
    image = examples["image"]
    whole = image.astype(np.uint8)
    yield whole if (whole == image).all() else _scale(examples)["image"]


def _taken(source: Source, batch_size: int) -> Iterator[Examples]:
  """Yields the stored examples of a source, in order."""
  check_number("batch_size", batch_size, BATCH_SIZE)
  _check_source(source)
  starts = range(0, len(source), batch_size)
  return (
    source.take(np.arange(i, min(i + batch_size, len(source)))) for i in starts
  )


def _scale(examples: Examples) -> Examples:
  """Scales images from [0, 255] to [-1, 1] and returns new arrays."""
  image = examples["image"].astype(np.float32)
  image /= 127.5
  image -= 1
  return {"image": image, "label": examples["label"]}


def check_rows(rows: tuple[int, ...] | None, batch_size: int) -> None:
  """Refuses rows that do not exist in a global batch.

  Raises:
    ValueError: if a row is outside the global batch, or if there are no rows.
  """
  if rows is not None and not set() < set(rows) <= set(range(batch_size)):
    raise ValueError(
      f"rows are {rows}; pass some of 0 to {batch_size - 1}, or None for all"
    )


def _check_source(source: Source) -> None:
  source.check()
  if not len(source):
    raise ValueError(f"{source} is empty; pass a source with images")
