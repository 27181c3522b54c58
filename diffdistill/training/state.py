"""What a round carries from update to update, and nothing random."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from diffdistill.arrays import Key, Params
from diffdistill.objectives.objective import Objective
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.sharding import Layout, tree_shardings


@flax.struct.dataclass
class TrainState:
  """The trained trees of a round, by name.

  step: updates done, int32. params, opt_state: one entry a trained name. ema:
  the product's entry where the optimizer keeps an average, else empty. Their
  shapes, or their shardings, make a TrainState too.
  """

  step: Any
  params: dict[str, Params]
  opt_state: dict[str, Params]
  ema: dict[str, Params]


def create_state(
  objective: Objective,
  optimizer: Optimizer,
  key: Key,
  frozen: Mapping[str, Params],
) -> TrainState:
  """The state before the first update; pure, to be jitted or traced."""
  params = objective.init(key, frozen)
  transformation = optimizer.transformation()
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state={n: transformation.init(p) for n, p in params.items()},
    ema={
      name: jax.tree.map(jnp.copy, params[name])
      for name in objective.trains[:1]
      if optimizer.ema_decay
    },
  )


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
    params, opt_state, ema = (
      {name: with_shardings(tree, layout) for name, tree in trees.items()}
      for trees in (shapes.params, shapes.opt_state, shapes.ema)
    )
    return TrainState(
      step=with_shardings(shapes.step, layout),
      params=params,
      opt_state=opt_state,
      ema=ema,
    )
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    shapes,
    tree_shardings(shapes, layout),
  )
