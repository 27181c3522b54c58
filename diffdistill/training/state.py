"""What a round carries from update to update, and nothing random."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from diffdistill.arrays import Key, Params
from diffdistill.objectives.objective import Objective
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.sharding import tree_shardings


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


def with_shardings(shapes: Params, mesh: Mesh) -> Params:
  """Shapes and dtypes, each with the place on the mesh its rule gives it."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    shapes,
    tree_shardings(shapes, mesh),
  )
