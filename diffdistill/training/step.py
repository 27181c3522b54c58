"""update(state, frozen, batch, key, hparams): where trained trees are
differentiated, and nowhere else."""

from collections.abc import Callable, Mapping
from typing import cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from diffdistill.arrays import Batch, Key, Metrics, Params, Scalar
from diffdistill.objectives.objective import Hparams, Objective
from diffdistill.training.augment import as_trained
from diffdistill.training.ema import ema_update
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.sharding import replicated, unrolled
from diffdistill.training.state import TrainState

# Metrics that count since the round began: what comes last is what is meant.
COUNTERS = ("/skipped", "/skipped_in_a_row")

Update = Callable[
  [TrainState, Mapping[str, Params], Batch, Key, Hparams],
  tuple[TrainState, Metrics],
]


def make_update(
  objective: Objective,
  name: str,
  optimizer: Optimizer,
  shardings: TrainState,
  mesh: Mesh,
) -> Update:
  """The jitted update of the tree `name`; the state is donated.

  The gradient is that of the mean over the global batch, so clipping comes
  after the all-reduce. `hparams` are traced scalars ("num_steps",
  "learning_rate"); `key` is the round's, folded with step and name; `batch` is
  a pipeline's, which the device turns into what is trained on.

  Args:
    objective: whose loss is differentiated in params[name] alone.
    name: one of objective.trains.
    optimizer: its optimizer.
    shardings: a TrainState of shardings, for the state that comes out.
    mesh: where metrics are replicated.
  """
  return jax.jit(
    _update(objective, name, optimizer, shardings, mesh),
    donate_argnums=0,
    out_shardings=(shardings, replicated(mesh)),
  )


def make_updates(
  objective: Objective,
  optimizer: Optimizer,
  shardings: TrainState,
  mesh: Mesh,
) -> Update:
  """Several jitted updates in one call, each tree's in its turn.

  Batches and hparams have a row for each update, whole cycles of turns, and
  begin one. So a small model's device does not wait for the host between
  updates. Arguments as of `make_update`.
  """
  cycle = [objective.turn(i) for i in range(len(objective.trains))]
  update = {
    name: _update(objective, name, optimizer, shardings, mesh)
    for name in objective.trains
  }

  def updates(
    state: TrainState,
    frozen: Mapping[str, Params],
    batches: Batch,
    key: Key,
    hparams: Hparams,
  ) -> tuple[TrainState, Metrics]:
    def turns(
      state: TrainState, rows: tuple[Batch, Hparams]
    ) -> tuple[TrainState, list[Metrics]]:
      found = []
      for i, names in enumerate(cycle):
        batch, given = jax.tree.map(lambda leaf, i=i: leaf[i], rows)
        for name in names:
          state, metrics = update[name](state, frozen, batch, key, given)
          found.append(metrics)
      # Or the partitioner may keep all of it everywhere between turns.
      return jax.lax.with_sharding_constraint(state, shardings), found

    rows = jax.tree.map(
      lambda leaf: leaf.reshape(-1, len(cycle), *leaf.shape[1:]),
      (dict(batches), dict(hparams)),
    )
    state, found = jax.lax.scan(turns, state, rows, unroll=unrolled(mesh))
    totals: Metrics = {}
    for metrics in found:
      for name, pair in metrics.items():
        if name.endswith(COUNTERS):
          totals[name] = jax.tree.map(lambda values: values[-1], pair)
        else:
          added = jax.tree.map(jnp.sum, pair)
          totals[name] = jax.tree.map(
            jnp.add, totals.get(name, (0.0, 0.0)), added
          )
    return state, totals

  return jax.jit(
    updates,
    donate_argnums=0,
    out_shardings=(shardings, replicated(mesh)),
  )


def _update(
  objective: Objective,
  name: str,
  optimizer: Optimizer,
  shardings: TrainState,
  mesh: Mesh,
) -> Update:
  """The update of the tree `name`; pure. Arguments as of `make_update`."""
  transformation = optimizer.transformation()
  name_index = objective.trains.index(name)

  def update(
    state: TrainState,
    frozen: Mapping[str, Params],
    batch: Batch,
    key: Key,
    hparams: Hparams,
  ) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(jax.random.fold_in(key, state.step), name_index)

    def loss(tree: Params, rows: Batch, key: Key) -> tuple[Scalar, Metrics]:
      params = {**state.params, name: tree}
      trained = as_trained(rows)
      return objective.loss(name, params, frozen, trained, key, hparams)

    grads, metrics = _gradient(
      loss,
      state.params[name],
      shardings.params[name],
      mesh,
      batch,
      key,
      optimizer.accumulate,
    )
    direction, new = transformation.update(
      grads, state.opt_state[name], state.params[name]
    )
    opt_state = cast(optax.ApplyIfFiniteState, new)
    rate = hparams["learning_rate"]
    params = jax.tree.map(
      lambda p, d: p - rate * d, state.params[name], direction
    )
    ema = state.ema
    if name in ema:
      average = ema_update(ema[name], params, optimizer.ema_decay, state.step)
      # A skipped update leaves the average where it was.
      average = jax.tree.map(
        lambda new, old: jnp.where(opt_state.last_finite, new, old),
        average,
        ema[name],
      )
      ema = {**ema, name: average}
    one = jnp.ones(())
    metrics |= {
      f"{name}/grad_norm": (optax.tree.norm(grads), one),
      f"{name}/skipped_in_a_row": (opt_state.notfinite_count, one),
      f"{name}/skipped": (opt_state.total_notfinite, one),
    }
    state = TrainState(
      step=state.step + 1,
      params={**state.params, name: params},
      opt_state={**state.opt_state, name: opt_state},
      ema=ema,
    )
    return state, metrics

  return update


def make_evaluate(objective: Objective, mesh: Mesh) -> Callable[..., Metrics]:
  """The jitted metrics of the product, with no gradient and no update.

  It takes (params by name, frozen, a pipeline's batch, key, hparams); compiled
  when first called.
  """

  def evaluate(
    params: Mapping[str, Params],
    frozen: Mapping[str, Params],
    batch: Batch,
    key: Key,
    hparams: Hparams,
  ) -> Metrics:
    name, trained = objective.trains[0], as_trained(batch)
    return objective.loss(name, params, frozen, trained, key, hparams)[1]

  return jax.jit(evaluate, out_shardings=replicated(mesh))


def _gradient(
  loss: Callable[[Params, Batch, Key], tuple[Scalar, Metrics]],
  tree: Params,
  places: Params,
  mesh: Mesh,
  batch: Batch,
  key: Key,
  parts: int,
) -> tuple[Params, Metrics]:
  """The mean gradient and summed metrics over `parts` slices of the batch.

  Slice i takes every parts-th row from i on, so that each stays spread over
  all devices. The gradient lies as the tree does, between slices too: no
  device holds more of a sum than of the weights.
  """

  def gradient(tree: Params, rows: Batch, key: Key) -> tuple[Params, Metrics]:
    grads, metrics = jax.grad(loss, has_aux=True)(tree, rows, key)
    return jax.lax.with_sharding_constraint(grads, places), metrics

  if parts == 1:
    return gradient(tree, batch, key)
  slices = jax.tree.map(
    lambda rows: jnp.moveaxis(
      rows.reshape(rows.shape[0] // parts, parts, *rows.shape[1:]), 1, 0
    ),
    dict(batch),
  )

  def add(total, part):
    rows, i = part
    new = gradient(tree, rows, jax.random.fold_in(key, i))
    return jax.tree.map(jnp.add, total, new), None

  first = jax.tree.map(lambda rows: rows[0], slices)
  zeros = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
    jax.eval_shape(gradient, tree, first, key),
  )
  (grads, metrics), _ = jax.lax.scan(
    add, zeros, (slices, jnp.arange(parts)), unroll=unrolled(mesh)
  )
  return jax.tree.map(lambda g: g / parts, grads), metrics
