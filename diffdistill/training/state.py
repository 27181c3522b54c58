"""The state of a round, which each update changes; it stores no random key."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from diffdistill.arrays import Key, Params
from diffdistill.objectives.objective import Objective, product_tree
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.sharding import (
  FROZEN,
  OPTIMIZER,
  TRAINED,
  Layout,
  tree_shardings,
)


@flax.struct.dataclass
class TrainState:
  """The trained trees of a round, by name.

  `step` is the number of updates done, int32. `params` and `opt_state` have one
  entry for each trained tree. `averages` has the moving averages of each tree,
  by name. A TrainState may also hold the shapes or the shardings of these
  arrays.
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
  """Makes the state before the first update; a pure function, to be jitted.

  Args:
    objective: the objective that declares the trained trees.
    optimizers: the optimizer of each tree.
    key: the key for trees that are drawn at random.
    frozen: the frozen trees by name; some trained trees start as copies of
      them.
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
  """Returns the decays of a tree's moving averages, by name.

  If both the objective and the optimizer name an average, the objective's decay
  is used. The averages of the optimizer are kept only for the tree that the
  round hands on.
  """
  own = dict(objective.trees[name].averages)
  of_product = name == product_tree(objective)
  return {**(optimizer.averages if of_product else {}), **own}


def in_dtype(tree: Params, dtype: str) -> Params:
  """Returns the tree with all floats in another dtype; a pure function."""

  def cast(leaf):
    is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf.astype(dtype) if is_float else leaf

  return jax.tree.map(cast, tree)


def with_shardings(shapes: Any, layout: Layout, kind: str = FROZEN) -> Any:
  """Gives each shape and dtype of a tree its sharding by the layout.

  Args:
    shapes: a tree of parameters, or a TrainState.
    layout: the mesh, and how each kind of tree is split.
    kind: the kind of a tree of parameters. A TrainState has trees of the kinds
      "trained" and "optimizer".
  """
  if isinstance(shapes, TrainState):
    params, opt_state = (
      {name: with_shardings(tree, layout, kind) for name, tree in trees.items()}
      for trees, kind in (
        (shapes.params, TRAINED),
        (shapes.opt_state, OPTIMIZER),
      )
    )
    averages = {
      name: {n: with_shardings(t, layout, OPTIMIZER) for n, t in trees.items()}
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
    tree_shardings(shapes, layout, kind),
  )
