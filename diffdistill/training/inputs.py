"""What a round is given: frozen weights, and batches of images or pairs."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from etils import epath

from diffdistill.arrays import Params
from diffdistill.data.pair_pipeline import PairPipeline
from diffdistill.data.pairs import PairStore
from diffdistill.data.sources import Examples
from diffdistill.objectives.objective import product_tree
from diffdistill.training import checkpoint
from diffdistill.training.curriculum import curriculum
from diffdistill.training.sharding import Layout, process_rows
from diffdistill.training.stage import (
  OUTSIDE,
  SECOND_MOMENTS,
  Pairs,
  Round,
  Stage,
)


@runtime_checkable
class Data(Protocol):
  """The batches of a round."""

  def iterate(self, start: int) -> Iterator[Examples]:
    """The batches of updates start, start + 1, ..."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
  """The inputs of every round of a run.

  Args:
    stages: the recipe.
    workdir: where rounds live.
    seed: of everything random.
    layout: where weights are loaded to.
    batches: the images of a (batch size, seed, name of a stage).
    pairs: the pairs of a stage and of a teacher, on disk.
    outside: frozen weights that are not of this run, of a (stage, name,
      source).
  """

  stages: tuple[Stage | Pairs, ...]
  workdir: epath.Path
  seed: int
  layout: Layout
  batches: Callable[[int, int, str], Data]
  pairs: Callable[[Pairs, Round, Params], PairStore]
  outside: Callable[[Stage | Pairs, str, str], Params]

  def frozen(self, stage: Stage | Pairs, round_: Round) -> dict[str, Params]:
    """The weights that a round is given and does not train, by name."""
    return {
      name: self._weights(stage, name, source)
      for name, source in round_.frozen.items()
    }

  def data(
    self, stage: Stage, round_: Round, say: Callable[[str], None]
  ) -> Data:
    """The batches of a round; `say` is told of pairs that are made for it."""
    seed = self.seed ^ round_.code
    if not stage.pairs:
      return self.batches(stage.batch_size, seed, stage.name)
    # The one round of pairs has its stage's name.
    pairs, made = self._rounds[stage.pairs]
    assert isinstance(pairs, Pairs)  # curriculum has seen to it
    store = self.pairs(pairs, made, self.frozen(pairs, made)["teacher"])
    return PairPipeline(
      store=store,
      batch_size=stage.batch_size,
      seed=seed,
      num_updates=round_.num_updates,
      rows=process_rows(stage.batch_size, self.layout.mesh),
      say=say,
    )

  @functools.cached_property
  def _rounds(self) -> dict[str, tuple[Stage | Pairs, Round]]:
    return {
      round_.name: (stage, round_) for stage, round_ in curriculum(self.stages)
    }

  def _weights(self, stage: Stage | Pairs, name: str, source: str) -> Params:
    if source.startswith(OUTSIDE):
      return self.outside(stage, name, source)
    maker, _ = self._rounds[source]
    assert isinstance(maker, Stage)  # curriculum has seen to it
    product = name if name == SECOND_MOMENTS else product_tree(maker.objective)
    return checkpoint.load_final(self.workdir / source, product, self.layout)
