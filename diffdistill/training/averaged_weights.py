"""Moving averages of weights, and the choice of the weights that a round keeps.

The product of a round is the weights that the round hands on. It is the moving
average that the objective names. If the objective names none, the product is
the moving average with the decay `ema_decay`. If that is not kept either, the
product is the plain weights.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from diffdistill.arrays import Params
from diffdistill.objectives.objective import Objective
from diffdistill.training.optimizers import EMA
from diffdistill.training.stage import SECOND_MOMENTS
from diffdistill.training.state import TrainState
from diffdistill.training.training_stage import Training


def ema_update(
  ema: Params, params: Params, decay: float, step: Int[Array, ""]
) -> Params:
  """Adds new weights to a moving average, and returns the new average.

  The result is ema + (1 - d) (params - ema), d = min(decay, (1 + step) / (10 +
  step)).

  Unlike the papers, which use a constant decay, the decay d rises at first, so
  that the average forgets the first weights quickly. The decay is constant
  after about 10 / (1 - decay) updates.

  Args:
    ema: the average so far.
    params: the weights after update number `step` of this tree, counted from 0.
    decay: the constant that d reaches, in [0, 1).
    step: a traced int32 scalar.
  """
  d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda e, p: e + (1 - d) * (p - e), ema, params)


def product_of(objective: Objective, state: TrainState) -> Params:
  """Returns the weights that a round hands on: an average, if there is one."""
  name, _, average = objective.product.partition("/")
  averages = state.averages[name]
  return averages.get(average or EMA, state.params[name])


def averages_by_name(state: TrainState) -> dict[str, Params]:
  """Returns every moving average by name.

  A loss uses these names; an example is "student/target".
  """
  return {
    f"{name}/{average}": tree
    for name, averages in state.averages.items()
    for average, tree in averages.items()
  }


def products_of(
  stage: Training, state: TrainState, best: Params | None
) -> dict[str, Params]:
  """Returns the trees of weights that a finished round keeps, by name.

  They are the trained trees of weights, and the moving averages of the product,
  the tree that the round hands on. If the best weights of the round were
  selected, they are the product, and the weights at the end of the round are
  kept as `last_<name>`. Adam's second moments of a teacher's gradients are kept
  beside the teacher.

  Args:
    stage: the stage of the round.
    state: the state at the end of the round.
    best: the weights that were selected; None to keep those at the end.
  """
  name = stage.product
  products = {**state.params, name: product_of(stage.objective, state)}
  for average, tree in state.averages[name].items():
    if average.startswith(f"{EMA}_"):
      products[f"{name}_{average}"] = tree
  if best is not None:
    products |= {name: best, f"last_{name}": products[name]}
  if name == "teacher":
    optimizer = stage.all_optimizers[name]
    products[SECOND_MOMENTS] = optimizer.second_moments(state.opt_state[name])
  return products
