"""Makes batches of stored pairs; a batch depends only on its step.

If the disk holds P of the S training shards, training uses a pool of P shards
that moves over all S:

  visit v    shard_size / batch_size updates on the pairs of one shard
  epoch e    P visits, to each shard of the pool once
  pool of e  shards first(e) to first(e) + P - 1, with E whole epochs and
             first(e) = floor(e (S - P) / (E - 1))

So the batch of a step depends on (seed, step, num_updates) and not on the
content of the disk. With P = S every epoch visits all pairs once.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from diffdistill.data.pairs import PairStore, Say
from diffdistill.data.pipeline import check_rows
from diffdistill.data.shards import Arrays
from diffdistill.ranges import (
  STEP,
  BatchSize,
  Seed,
  Updates,
  check_number,
  check_ranges,
)

OF_EPOCH, OF_VISIT = 0, 1


def _silent(line: str) -> None:
  """Prints nothing; it is the default of the field `say`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairPipeline:
  """Endless batches of pairs; each process gets its rows of the global batch.

  The global batch of a step depends only on (pairs, capacity, batch_size, seed,
  num_updates, step). The class has the interface of `Pipeline`. Missing shards
  are made when they are needed; shards that have left the pool are removed.

  Args:
    store: the pairs on disk.
    batch_size: the number of rows of the global batch; it must divide
      shard_size and held_out.
    seed: the seed of the order of pairs.
    num_updates: the number of batches of the training, in which the pool moves
      over all S shards.
    rows: the rows of the global batch that this process gets; by default all.
    say: is called with a line for every shard that is made.
  """

  store: PairStore
  batch_size: BatchSize
  seed: Seed
  num_updates: Updates
  rows: tuple[int, ...] | None = None
  say: Say = _silent

  def __post_init__(self):
    check_ranges(self)
    check_rows(self.rows, self.batch_size)
    for name in ("shard_size", "held_out"):
      value = getattr(self.store.pairs, name)
      if value % self.batch_size:
        raise ValueError(
          f"{name} is {value}, which batch_size {self.batch_size} does not"
          " divide; pass a multiple of it"
        )

  def batch(self, step: int) -> Arrays:
    """Returns this process's rows of the global batch of a step.

    It reads a whole shard for this batch, and makes the shard if it is missing.

    Returns:
      "noise": float16 and "image": uint8, as they are stored, both of shape
      `b h w c` with b the number of rows; "label", if the pairs have any:
      int32, shape `b`.
    """
    return next(self.iterate(step))

  def iterate(self, start: int) -> Iterator[Arrays]:
    """Yields batch(start), batch(start + 1), ...; reads shards once a visit."""
    check_number("step", start, STEP)
    self.store.claim()
    return self._batches(start)

  def held_out(self) -> Iterator[Arrays]:
    """Yields batches of the held-out pairs: each pair once, in order."""
    self.store.claim()
    return self._held_out()

  def pool(self, visit: int) -> range:
    """Returns the training shards that are on disk at a visit."""
    count = len(self.store.train_shards)
    size = self.store.capacity
    # If the last epoch is incomplete, it keeps the pool of the epoch before
    # it.
    epochs = max(self.num_updates // self._visit_length // size, 1)
    epoch = min(visit // size, epochs - 1)
    first = epoch * (count - size) // max(epochs - 1, 1)
    return range(first, first + size)

  def shards(self, start: int, stop: int) -> list[int]:
    """Returns the shards of updates `start` to `stop - 1`, in order."""
    if start >= stop:
      return []
    first, last = start // self._visit_length, (stop - 1) // self._visit_length
    seen: dict[int, None] = {}
    for visit in range(first, last + 1):
      seen.setdefault(self.shard(visit))
      if len(seen) == len(self.store.train_shards):
        break
    return list(seen)

  def shard(self, visit: int) -> int:
    """Returns the shard that is trained on at a visit."""
    pool = self.pool(visit)
    epoch, position = divmod(visit, len(pool))
    return pool[int(self._order(OF_EPOCH, epoch, len(pool))[position])]

  @property
  def _visit_length(self) -> int:
    return self.store.pairs.shard_size // self.batch_size

  def _order(self, of: int, number: int, size: int) -> np.ndarray:
    """Permutes the shards of an epoch, or the pairs of a visit."""
    return np.random.default_rng([self.seed, of, number]).permutation(size)

  def _batches(self, start: int) -> Iterator[Arrays]:
    first, done = divmod(start, self._visit_length)
    kept = None
    for visit in itertools.count(first):
      if self.pool(visit) != kept:
        kept = self.pool(visit)
        self.store.keep(kept)
      yield from self._visit(visit, done)
      done = 0

  def _visit(self, visit: int, done: int) -> Iterator[Arrays]:
    """Yields the batches of one visit, except the first `done`."""
    shard = self.shard(visit)
    self.store.make((shard,), self.say)
    pairs = self.store.read(shard)
    order = self._order(OF_VISIT, visit, len(pairs["image"]))
    for i in range(done, self._visit_length):
      yield self._rows(pairs, order[i * self.batch_size :])

  def _held_out(self) -> Iterator[Arrays]:
    shards = self.store.pairs.held_out_shards
    self.store.make(shards, self.say)
    for shard in shards:
      pairs = self.store.read(shard)
      for first in range(0, len(pairs["image"]), self.batch_size):
        yield self._rows(pairs, np.arange(first, first + self.batch_size))

  def _rows(self, pairs: Arrays, order: np.ndarray) -> Arrays:
    """Takes this process's rows from the first pairs of `order`."""
    rows = order[: self.batch_size]
    if self.rows is not None:
      rows = rows[list(self.rows)]
    names = ("noise", "image", "label")
    return {name: pairs[name][rows] for name in names if name in pairs}
