"""batch(step): the shuffled batches of a source as a function of the step.

No position is stored: a run resumes by asking for the batch of its step. The
indices of a batch are a slice of the permutation of its epoch. Images are taken
in one call, as they are stored. Grain prepares batches ahead.
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
  """Endless batches, each process seeing its rows of the global batch.

  The global batch of a step depends on (source, batch_size, seed, flip, step)
  and on nothing else. It is the same bit for bit, however processes share its
  rows. Every epoch visits each image once, in an order of its own. A batch may
  hold the end of one epoch and the beginning of the next.

  Args:
    source: where the images come from; checked here.
    batch_size: rows of the global batch; may be larger than the source.
    seed: of the order and of the flips.
    flip: mirror each image left to right with probability 1/2.
    labels: whether batches hold labels.
    rows: the rows of the global batch that this process sees; default: all.
    num_threads: threads that prepare batches in `iterate`; 0 for none.
    prefetch: how many batches `iterate` keeps ready.

  Raises:
    ValueError: for a field out of range, an empty source, or what the source's
      `check()` refuses.
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
    """This process's rows of the global batch of `step`, as they are stored.

    The device scales and mirrors them: see training/augment.py.

    Returns:
      "image": uint8, or float32 where the source resizes, in [0, 255], shape
      `b h w c` with b the number of rows; "label" (if asked for): int32,
      shape `b`; "flip" (if there are flips): which images to mirror, bool,
      shape `b`.
    """
    check_number("step", step, STEP)
    rows = slice(None) if self.rows is None else list(self.rows)
    batch = self.source.take(self._indices(step)[rows])
    if self.flip:
      # Drawn for the global batch, so that no process count can change it.
      random = np.random.default_rng([self.seed, OF_FLIPS, step])
      batch["flip"] = (random.random(self.batch_size) < 0.5)[rows]
    if not self.labels:
      del batch["label"]
    return batch

  def iterate(self, start: int) -> Iterator[Examples]:
    """batch(start), batch(start + 1), ..., prepared ahead by threads."""
    check_number("step", start, STEP)
    options = grain.ReadOptions(
      num_threads=self.num_threads, prefetch_buffer_size=self.prefetch
    )
    steps = grain.MapDataset.range(start, sys.maxsize)
    return iter(steps.map(self.batch).to_iter_dataset(options))

  def _indices(self, step: int) -> Indices:
    """The indices of a global batch, from one epoch or more."""
    size, parts = len(self.source), []
    first, end = step * self.batch_size, (step + 1) * self.batch_size
    while first < end:
      epoch, start = divmod(first, size)
      parts.append(self._order(epoch)[start : start + end - first])
      first += len(parts[-1])
    return np.concatenate(parts)

  @functools.cached_property
  def _order(self) -> Callable[[int], Indices]:
    """The permutation of an epoch; the last two are kept in memory."""

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> Indices:
      random = np.random.default_rng([self.seed, OF_EPOCH, epoch])
      return random.permutation(len(self.source))

    return order


def once(source: Source, batch_size: int) -> Iterator[Examples]:
  """Every example exactly once, in order, for reference statistics.

  Examples are neither shuffled nor flipped, else as training sees them:
  "image" is float32 in [-1, 1] of shape `b h w c`, "label" int32 of shape `b`.
  The last batch may be short.

  Raises:
    ValueError: for a batch_size below 1, an empty source, or what the source's
      `check()` refuses; before the first batch.
  """
  check_number("batch_size", batch_size, BATCH_SIZE)
  _check_source(source)
  starts = range(0, len(source), batch_size)
  return (
    _scale(source.take(np.arange(i, min(i + batch_size, len(source)))))
    for i in starts
  )


def _scale(examples: Examples) -> Examples:
  """Images of [0, 255] in [-1, 1], as new arrays."""
  image = examples["image"].astype(np.float32)
  image /= 127.5
  image -= 1
  return {"image": image, "label": examples["label"]}


def check_rows(rows: tuple[int, ...] | None, batch_size: int) -> None:
  """Refuses rows that a global batch does not have.

  Raises:
    ValueError: if there are such rows, or no rows at all.
  """
  if rows is not None and not set() < set(rows) <= set(range(batch_size)):
    raise ValueError(
      f"rows are {rows}; pass some of 0 to {batch_size - 1}, or None for all"
    )


def _check_source(source: Source) -> None:
  source.check()
  if not len(source):
    raise ValueError(f"{source} is empty; pass a source with images")
