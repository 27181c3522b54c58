"""The compiled functions of a stage, which all its rounds share."""

import dataclasses
from collections.abc import Callable, Mapping

import jax

from diffdistill.arrays import Key, Metrics, Params
from diffdistill.objectives.objective import Turn
from diffdistill.training.sharding import Layout
from diffdistill.training.state import (
  TrainState,
  create_state,
  with_shardings,
)
from diffdistill.training.step import (
  Update,
  make_evaluate,
  make_update,
  make_updates,
)
from diffdistill.training.training_stage import Training


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageFunctions:
  """The jitted functions of one stage, which compile when first called.

  Args:
    init: makes the state before the first update from (key, frozen trees).
    updates: for each turn of the objective, the function that does an update.
    several: a function that does several updates in one call, in whole cycles
      of turns.
    evaluate: returns the metrics of the weights that the round hands on,
      without an update.
    abstract: the shapes, dtypes and shardings of the state.
  """

  init: Callable[..., TrainState]
  updates: Mapping[Turn, Update]
  several: Update
  evaluate: Callable[..., Metrics]
  abstract: TrainState


def stage_functions(
  stage: Training, frozen: Mapping[str, Params], layout: Layout
) -> StageFunctions:
  """Makes the jitted functions of a stage.

  Args:
    stage: the stage that is trained.
    frozen: the frozen trees of the stage, or their shapes.
    layout: the mesh, and where parameters lie on it.
  """
  objective, optimizers = stage.objective, stage.all_optimizers

  def init(key: Key, frozen: Mapping[str, Params]) -> TrainState:
    return create_state(objective, optimizers, key, frozen)

  shapes = jax.eval_shape(init, jax.random.key(0), frozen)
  abstract = with_shardings(shapes, layout)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  return StageFunctions(
    init=jax.jit(init, out_shardings=shardings),
    updates={
      turn: make_update(
        objective, turn, optimizers, shardings, layout.mesh, stage.accumulate
      )
      for turn in dict.fromkeys(objective.cycle)
    },
    several=make_updates(
      objective, optimizers, shardings, layout.mesh, stage.accumulate
    ),
    evaluate=make_evaluate(objective, layout.mesh),
    abstract=abstract,
  )
