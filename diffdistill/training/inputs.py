"""The inputs of a round: frozen weights, and batches of images or pairs."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from etils import epath

from diffdistill.arrays import Params
from diffdistill.data.pair_pipeline import PairPipeline
from diffdistill.data.pairs import PairStore
from diffdistill.data.sources import Examples
from diffdistill.training import checkpoint
from diffdistill.training.curriculum import curriculum
from diffdistill.training.pairs_stage import Pairs, pairs_stages
from diffdistill.training.sharding import Layout, process_rows
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
