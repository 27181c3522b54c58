"""What a round carries from update to update, and nothing random."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from diffdistill.arrays import Key, Params
from diffdistill.objectives.objective import Objective, product_tree
from diffdistill.training.optimizers import EMA, Optimizer
from diffdistill.training.sharding import Layout, tree_shardings


@flax.struct.dataclass
class TrainState:
  """The trained trees of a round, by name.

  step: updates done, int32. params, opt_state: one entry a trained tree.
  averages: for each tree, its moving averages by name. Their shapes, or their
  shardings, make a TrainState too.
  """

  step: Any
  params: dict[str, Params]
  opt_state: dict[str, Params]
  averages: dict[str, dict[str, Params]]


def create_state(
  objective: Objective,
  optimizers: Mapping[str, Optimizer],
  key: Key,
  frozen: Mapping[str, Params],
) -> TrainState:
  """The state before the first update; pure, to be jitted or traced.

  Args:
    objective: whose trees are trained.
    optimizers: of each tree.
    key: of what is drawn anew.
    frozen: what the trees start from, by name.
  """
  params = objective.init(key, frozen)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state={
      name: optimizers[name].transformation().init(tree)
      for name, tree in params.items()
    },
    averages={
      name: {
        average: jax.tree.map(jnp.copy, tree)
        for average in decays_of(objective, name, optimizers[name])
      }
      for name, tree in params.items()
    },
  )


def decays_of(
  objective: Objective, name: str, optimizer: Optimizer
) -> dict[str, float]:
  """The decays of a tree's moving averages, by name.

  The objective's own come first; the optimizer's are of the product alone.
  """
  own = dict(objective.trees[name].averages)
  of_product = name == product_tree(objective)
  return {**(optimizer.averages if of_product else {}), **own}


def product_of(objective: Objective, state: TrainState) -> Params:
  """The weights that a round makes, so far."""
  name, _, average = objective.product.partition("/")
  averages = state.averages[name]
  return averages.get(average or EMA, state.params[name])


def named_averages(state: TrainState) -> dict[str, Params]:
  """Every moving average as a loss knows it: "student/target"."""
  return {
    f"{name}/{average}": tree
    for name, averages in state.averages.items()
    for average, tree in averages.items()
  }


def in_dtype(tree: Params, dtype: str) -> Params:
  """The tree with its floats in a dtype; pure, to be jitted or traced."""

  def cast(leaf):
    is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf.astype(dtype) if is_float else leaf

  return jax.tree.map(cast, tree)


def with_shardings(shapes: Any, layout: Layout) -> Any:
  """Shapes and dtypes, each with the place that the layout gives it.

  Args:
    shapes: a tree of parameters, or a TrainState, whose trees lie alike.
    layout: of the mesh.
  """
  if isinstance(shapes, TrainState):
    params, opt_state = (
      {name: with_shardings(tree, layout) for name, tree in trees.items()}
      for trees in (shapes.params, shapes.opt_state)
    )
    averages = {
      name: {n: with_shardings(t, layout) for n, t in trees.items()}
      for name, trees in shapes.averages.items()
    }
    return TrainState(
      step=with_shardings(shapes.step, layout),
      params=params,
      opt_state=opt_state,
      averages=averages,
    )
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    shapes,
    tree_shardings(shapes, layout),
  )
