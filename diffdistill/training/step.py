"""The update of weights: only this file takes gradients of trained trees."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from diffdistill.arrays import Batch, Key, Metrics, Params, Scalar
from diffdistill.objectives.objective import (
  Now,
  Objective,
  Trees,
  Turn,
  product_tree,
)
from diffdistill.training.augment import as_trained
from diffdistill.training.averaged_weights import averages_by_name, ema_update
from diffdistill.training.optimizers import (
  Optimizer,
  applied,
  like_params,
)
from diffdistill.training.sharding import replicated, unrolled
from diffdistill.training.state import TrainState, decays_of

# A metric whose name ends like this is a running count of the round. Of several
# values, only the last one is reported.
COUNTERS = ("/skipped", "/skipped_in_a_row")

# The learning rate of each tree by name, as a traced scalar.
Rates = Mapping[str, jax.Array]
Update = Callable[
  [TrainState, Trees, Batch, Key, Now, Rates], tuple[TrainState, Metrics]
]


def make_update(
  objective: Objective,
  turn: Turn,
  optimizers: Mapping[str, Optimizer],
  shardings: TrainState,
  mesh: Mesh,
  accumulate: int = 1,
) -> Update:
  """Makes the jitted update of the trees of one turn; it donates the state.

  The loss is the mean over the global batch, so its gradient is clipped after
  the all-reduce. The update takes the key of the round, and folds in the step
  and the turn's first tree. It takes a batch as a pipeline stores it, and
  makes the training batch on the device.

  Args:
    objective: the objective; its loss is differentiated only in the trees of
      the turn.
    turn: one turn of objective.cycle, the names of the trees that learn
      together.
    optimizers: the optimizer of each tree.
    shardings: a TrainState of shardings, for the new state.
    mesh: the mesh on which every device gets the metrics.
    accumulate: the number of parts of the batch, which are computed one by one.
  """
  return jax.jit(
    _update(objective, turn, optimizers, shardings, mesh, accumulate),
    donate_argnums=0,
    out_shardings=(shardings, replicated(mesh)),
  )


def make_updates(
  objective: Objective,
  optimizers: Mapping[str, Optimizer],
  shardings: TrainState,
  mesh: Mesh,
  accumulate: int = 1,
) -> Update:
  """Makes a jitted function that does several updates, in the cycle's order.

  Batches, `now` and `rates` have one row for each update. The first row begins
  a cycle, and the last row ends one. The device need not wait for the host
  between updates, which matters for small models. The arguments are those of
  `make_update`.
  """
  cycle = objective.cycle
  update = {
    turn: _update(objective, turn, optimizers, shardings, mesh, accumulate)
    for turn in set(cycle)
  }

  def updates(
    state: TrainState,
    frozen: Trees,
    batches: Batch,
    key: Key,
    now: Now,
    rates: Rates,
  ) -> tuple[TrainState, Metrics]:
    def turns(state: TrainState, rows: Any) -> tuple[TrainState, list[Metrics]]:
      found = []
      for i, turn in enumerate(cycle):
        batch, at, given = jax.tree.map(lambda leaf, i=i: leaf[i], rows)
        state, metrics = update[turn](state, frozen, batch, key, at, given)
        found.append(metrics)
      # Without this constraint, the partitioner may keep the whole state on
      # every device.
      return jax.lax.with_sharding_constraint(state, shardings), found

    rows = jax.tree.map(
      lambda leaf: leaf.reshape(-1, len(cycle), *leaf.shape[1:]),
      (dict(batches), now, dict(rates)),
    )
    state, found = jax.lax.scan(turns, state, rows, unroll=unrolled(mesh))
    return state, _totals(found)

  return jax.jit(
    updates,
    donate_argnums=0,
    out_shardings=(shardings, replicated(mesh)),
  )


def _totals(found: list[Metrics]) -> Metrics:
  """Adds up the metrics of all turns, which have one row for each cycle."""
  totals: Metrics = {}
  for metrics in found:
    for name, pair in metrics.items():
      if name.endswith(COUNTERS):
        totals[name] = jax.tree.map(lambda values: values[-1], pair)
      else:
        added = jax.tree.map(jnp.sum, pair)
        before = totals.get(name, (jnp.zeros(()), jnp.zeros(())))
        totals[name] = jax.tree.map(jnp.add, before, added)
  return totals


def _update(
  objective: Objective,
  turn: Turn,
  optimizers: Mapping[str, Optimizer],
  shardings: TrainState,
  mesh: Mesh,
  accumulate: int,
) -> Update:
  """Does the update of one turn, not jitted; the arguments of `make_update`."""
  first = list(objective.trees).index(turn[0])
  # A gradient lies where the optimizer needs it.
  places = {name: like_params(shardings.opt_state[name]) for name in turn}

  def update(
    state: TrainState,
    frozen: Trees,
    batch: Batch,
    key: Key,
    now: Now,
    rates: Rates,
  ) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(jax.random.fold_in(key, state.step), first)
    fixed = {**frozen, **state.params, **averages_by_name(state)}

    def loss(
      trained: dict[str, Params], rows: Batch, key: Key
    ) -> tuple[Scalar, Metrics]:
      trees = {**fixed, **trained}
      return objective.loss(turn, trees, as_trained(rows), key, now)

    grads, metrics = _gradient(
      loss,
      {name: state.params[name] for name in turn},
      places,
      mesh,
      batch,
      key,
      accumulate,
      objective.group,
    )
    state = dataclasses.replace(state, step=state.step + 1)
    for name in turn:
      decays = decays_of(objective, name, optimizers[name])
      state, added = _apply(
        state, name, optimizers[name], decays, grads[name], rates[name]
      )
      metrics |= added
    return state, metrics

  return update


def _apply(
  state: TrainState,
  name: str,
  optimizer: Optimizer,
  decays: Mapping[str, float],
  grads: Params,
  rate: jax.Array,
) -> tuple[TrainState, Metrics]:
  """Applies a gradient to one tree, its optimizer's state and its averages."""
  before, old = state.opt_state[name], state.params[name]
  direction, new = optimizer.transformation().update(grads, before, old)
  opt_state = cast(optax.ApplyIfFiniteState, new)
  params = jax.tree.map(lambda p, d: p - rate * d, old, direction)
  averages = {}
  for average, decay in decays.items():
    kept = state.averages[name][average]
    updated = ema_update(kept, params, decay, applied(before))
    # A skipped update must not change the moving average of the weights.
    averages[average] = jax.tree.map(
      lambda u, k: jnp.where(opt_state.last_finite, u, k), updated, kept
    )
  one = jnp.ones(())
  metrics = {
    f"{name}/grad_norm": (optax.tree.norm(grads), one),
    f"{name}/skipped_in_a_row": (opt_state.notfinite_count, one),
    f"{name}/skipped": (opt_state.total_notfinite, one),
  }
  state = dataclasses.replace(
    state,
    params={**state.params, name: params},
    opt_state={**state.opt_state, name: opt_state},
    averages={**state.averages, name: averages},
  )
  return state, metrics


def make_evaluate(objective: Objective, mesh: Mesh) -> Callable[..., Metrics]:
  """Makes a jitted function that evaluates the loss of the weights handed on.

  It takes (trees by name, a batch as a pipeline stores it, key, now). It
  returns the metrics of the turn that trains the weights which the round hands
  on, and it changes nothing.
  """
  name = product_tree(objective)
  turn = next(turn for turn in objective.cycle if name in turn)

  def evaluate(trees: Trees, batch: Batch, key: Key, now: Now) -> Metrics:
    return objective.loss(turn, trees, as_trained(batch), key, now)[1]

  return jax.jit(evaluate, out_shardings=replicated(mesh))


def _gradient(
  loss: Callable[[Params, Batch, Key], tuple[Scalar, Metrics]],
  trees: Params,
  places: Params,
  mesh: Mesh,
  batch: Batch,
  key: Key,
  parts: int,
  group: int,
) -> tuple[Params, Metrics]:
  """Computes the mean gradient and the summed metrics over parts of a batch.

  Of `parts` parts, part i has the groups of rows i, i + parts, i + 2 parts,
  ..., so that each part is spread over all devices. The gradient and its
  partial sums lie at `places`.
  """

  def gradient(trees: Params, rows: Batch, key: Key) -> tuple[Params, Metrics]:
    grads, metrics = jax.grad(loss, has_aux=True)(trees, rows, key)
    return jax.lax.with_sharding_constraint(grads, places), metrics

  if parts == 1:
    return gradient(trees, batch, key)

  def sliced(rows: jax.Array) -> jax.Array:
    groups = rows.reshape(-1, parts, group, *rows.shape[1:])
    shape = (parts, rows.shape[0] // parts, *rows.shape[1:])
    return jnp.moveaxis(groups, 1, 0).reshape(shape)

  slices = jax.tree.map(sliced, dict(batch))

  def add(total, part):
    rows, i = part
    new = gradient(trees, rows, jax.random.fold_in(key, i))
    return jax.tree.map(jnp.add, total, new), None

  first = jax.tree.map(lambda rows: rows[0], slices)
  zeros = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
    jax.eval_shape(gradient, trees, first, key),
  )
  (grads, metrics), _ = jax.lax.scan(
    add, zeros, (slices, jnp.arange(parts)), unroll=unrolled(mesh)
  )
  return jax.tree.map(lambda g: g / parts, grads), metrics
