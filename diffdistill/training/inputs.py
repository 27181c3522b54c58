"""The inputs of a round: frozen weights, and batches of images or pairs."""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from etils import epath
from jax.sharding import Mesh

from diffdistill.arrays import Batch, Params
from diffdistill.data.pair_pipeline import PairPipeline
from diffdistill.data.pairs import PairStore
from diffdistill.data.sources import Examples
from diffdistill.training import checkpoint
from diffdistill.training.curriculum import curriculum
from diffdistill.training.pairs_stage import Pairs, pairs_stages
from diffdistill.training.sharding import (
  Layout,
  process_rows,
  shard_batch,
  shard_batches,
)
from diffdistill.training.stage import (
  OUTSIDE,
  SECOND_MOMENTS,
  Round,
  Stage,
)
from diffdistill.training.training_stage import Training


@runtime_checkable
class Data(Protocol):
  """The batches of a round."""

  def iterate(self, start: int) -> Iterator[Examples]:
    """Yields the batches of the updates start, start + 1, ..."""
    ...


class Placed:
  """The batches of a round on the mesh, placed before they are needed.

  Args:
    batches: the batches of the round, on the host.
    mesh: the mesh.
  """

  def __init__(self, batches: Iterator[Examples], mesh: Mesh):
    self._batches, self._mesh = batches, mesh
    # The batches that are fetched, and those of them that are placed.
    self._fetched: collections.deque[Examples] = collections.deque()
    self._placed: tuple[int, Batch] | None = None
    self._error: Exception | None = None

  def place(self, count: int) -> None:
    """Places the batches of the next call, if it will have `count` updates.

    If reading fails, `take` raises the error: then the updates before it are
    recorded and saved.
    """
    try:
      self._placed = count, self._place(count)
    except Exception as error:
      self._error = error

  def take(self, count: int) -> Batch:
    """Returns the placed batches of the next call, of `count` updates."""
    if self._error is not None:
      raise self._error
    ahead, self._placed = self._placed, None
    if ahead is None or ahead[0] != count:
      ahead = count, self._place(count)
    for _ in range(count):
      self._fetched.popleft()
    return ahead[1]

  def _place(self, count: int) -> Batch:
    while len(self._fetched) < count:
      self._fetched.append(next(self._batches))
    if count == 1:
      return shard_batch(self._fetched[0], self._mesh)
    rows = list(itertools.islice(self._fetched, count))
    return shard_batches(rows, self._mesh)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
  """The inputs of every round of a run.

  Args:
    stages: the recipe.
    workdir: the folder of the run.
    seed: the seed of all random numbers of the run.
    layout: the mesh, and where parameters lie on it.
    batches: returns batches of images for (batch size, seed, stage's name).
    pairs: opens the pairs on disk, for (stage, round, teacher's weights).
    outside: loads weights from outside the run, for (stage, name, source).
  """

  stages: tuple[Stage, ...]
  workdir: epath.Path
  seed: int
  layout: Layout
  batches: Callable[[int, int, str], Data]
  pairs: Callable[[Pairs, Round, Params], PairStore]
  outside: Callable[[Stage, str, str], Params]

  def frozen(self, stage: Stage, round_: Round) -> dict[str, Params]:
    """Loads the frozen weights of a round, by name."""
    return {
      name: self._weights(stage, name, source)
      for name, source in round_.frozen.items()
    }

  def images(self, stage: Training, round_: Round) -> Data:
    """Returns the batches of a round of a stage that trains on images."""
    seed = self.seed ^ round_.code
    return self.batches(stage.batch_size, seed, stage.name)

  def pairs_of(
    self, stage: Training, round_: Round, say: Callable[[str], None]
  ) -> PairPipeline | None:
    """Returns the batches of a round of a stage that trains on pairs.

    Args:
      stage, round_: the stage and the round that are trained.
      say: is called with a line of text about each set of pairs that is made.

    Returns:
      The batches, or None for a stage that trains on images.
    """
    if not stage.pairs:
      return None
    pairs = pairs_stages(self.stages)[stage.pairs]
    # A stage that makes pairs has one round, which has the name of the stage.
    _, made = self._rounds[stage.pairs]
    store = self.pairs(pairs, made, self.frozen(pairs, made)["teacher"])
    return PairPipeline(
      store=store,
      batch_size=stage.batch_size,
      seed=self.seed ^ round_.code,
      num_updates=round_.num_updates,
      rows=process_rows(stage.batch_size, self.layout.mesh),
      say=say,
    )

  @functools.cached_property
  def _rounds(self) -> dict[str, tuple[Stage, Round]]:
    return {
      round_.name: (stage, round_) for stage, round_ in curriculum(self.stages)
    }

  def _weights(self, stage: Stage, name: str, source: str) -> Params:
    if source.startswith(OUTSIDE):
      return self.outside(stage, name, source)
    maker, _ = self._rounds[source]
    product = name if name == SECOND_MOMENTS else maker.product
    return checkpoint.load_final(self.workdir / source, product, self.layout)
