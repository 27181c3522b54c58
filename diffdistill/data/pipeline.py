"""batch(step): the shuffled batches of a source as a function of the step.

Nothing positional is stored: a run resumes by asking for the step it is at.
The indices of a batch are a slice of its epoch's permutation, and its images
are taken in one call, as they are stored: a batch costs what its images cost.
Grain prepares batches ahead.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator

import grain
import numpy as np

from diffdistill.data.sources import Examples, Indices, Source

OF_EPOCH, OF_FLIPS = 0, 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
  """Endless batches, each process seeing its rows of the global batch.

  The global batch of a step depends on (source, batch_size, seed, flip, step)
  and on nothing else: however processes share its rows, put together they are
  the same bit for bit. Every epoch visits each image once, in an order of its
  own; batches may straddle epochs.

  Args:
    source: of the images; checked here.
    batch_size: of the global batch; may exceed the source.
    seed: in [0, 2**32).
    flip: mirror each image left to right with probability 1/2.
    labels: whether batches hold labels.
    rows: of the global batch, that this process sees; all by default.
    num_threads: that prepare batches ahead in `iterate`; 0 for none.
    prefetch: how many batches `iterate` keeps ready.

  Raises:
    ValueError: a field out of range or an empty source; what the source's
      `check()` raises.
  """

  source: Source
  batch_size: int
  seed: int
  flip: bool = False
  labels: bool = True
  rows: tuple[int, ...] | None = None
  num_threads: int = 2
  prefetch: int = 4

  def __post_init__(self):
    _check_batch_size(self.batch_size)
    check_rows(self.rows, self.batch_size)
    if not 0 <= self.seed < 2**32:
      raise ValueError(f"seed is {self.seed}; pass 0 to 2**32 - 1")
    if self.num_threads < 0 or self.prefetch < 0:
      raise ValueError(
        f"num_threads is {self.num_threads} and prefetch {self.prefetch}; pass"
        " 0 or more"
      )
    _check_source(self.source)

  def batch(self, step: int) -> Examples:
    """This process's rows of the global batch of `step`, as they are stored.

    Scaling and mirroring are for the device: see training/augment.py.

    Returns:
      "image": uint8, or float32 where the source resizes, in [0, 255], shape
      `b h w c` with b the number of rows; "label" (if asked for): int32,
      shape `b`; "flip" (if there are flips): which images to mirror, bool,
      shape `b`.
    """
    _check_step(step)
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
    _check_step(start)
    options = grain.ReadOptions(
      num_threads=self.num_threads, prefetch_buffer_size=self.prefetch
    )
    steps = grain.MapDataset.range(start, sys.maxsize)
    return iter(steps.map(self.batch).to_iter_dataset(options))

  def _indices(self, step: int) -> Indices:
    """The global batch's, of one epoch or of several."""
    size, parts = len(self.source), []
    first, end = step * self.batch_size, (step + 1) * self.batch_size
    while first < end:
      epoch, start = divmod(first, size)
      parts.append(self._order(epoch)[start : start + end - first])
      first += len(parts[-1])
    return np.concatenate(parts)

  @functools.cached_property
  def _order(self) -> Callable[[int], Indices]:
    """The permutation of an epoch; two are kept, for batches between them."""

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> Indices:
      random = np.random.default_rng([self.seed, OF_EPOCH, epoch])
      return random.permutation(len(self.source))

    return order


def once(source: Source, batch_size: int) -> Iterator[Examples]:
  """Every example exactly once, in order, for reference statistics.

  Yields what is trained on ("image": float32 in [-1, 1], shape `b h w c`;
  "label": int32, shape `b`), neither shuffled nor flipped; the last batch may
  be short.

  Raises:
    ValueError: batch_size below 1 or an empty source; what the source's
      `check()` raises. All before the first batch.
  """
  _check_batch_size(batch_size)
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
    ValueError: where there are some, or none at all.
  """
  if rows is not None and not set() < set(rows) <= set(range(batch_size)):
    raise ValueError(
      f"rows are {rows}; pass some of 0 to {batch_size - 1}, or None for all"
    )


def _check_batch_size(batch_size: int) -> None:
  if batch_size < 1:
    raise ValueError(f"batch_size is {batch_size}; pass 1 or more")


def _check_step(step: int) -> None:
  if step < 0:
    raise ValueError(f"step is {step}; pass 0 or more")


def _check_source(source: Source) -> None:
  source.check()
  if not len(source):
    raise ValueError(f"{source} is empty; pass a source with images")
