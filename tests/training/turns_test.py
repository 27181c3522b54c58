"""Tests that a turn may train several trees, and a cycle may have any turns."""

import jax
import numpy as np
import pytest

from diffdistill.objectives.objective import turn_of
from diffdistill.training.optimizers import Optimizer, applied
from diffdistill.training.sharding import (
  Layout,
  replicated,
  shard_batch,
  shard_batches,
  tree_shardings,
)
from diffdistill.training.state import create_state
from diffdistill.training.step import make_update, make_updates

FROZEN = {"teacher": {"w": np.eye(6, dtype=np.float32)}}
CRITIC = (("auxiliary",),) * 5 + (("student",),)
JOINT = (("student", "auxiliary"),)


def batch(i):
  random = np.random.default_rng(i)
  return {"image": random.integers(0, 256, (8, 1, 2, 3), np.uint8)}


def with_cycle(least_squares, turns, rows=1):
  """Makes LeastSquares with these turns, and with groups of `rows` rows."""

  class Turns(least_squares):
    group = rows

    @property
    def cycle(self):
      return turns

  return Turns()


@pytest.fixture
def train(mesh_of, at_update):
  """The function train(...) makes updates and returns the final state."""

  def make(objective, optimizers, updates, rates=None, accumulate=1):
    mesh = mesh_of(1)
    state = create_state(objective, optimizers, jax.random.key(0), FROZEN)
    shardings = tree_shardings(state, Layout(mesh=mesh))
    state = jax.device_put(state, shardings)
    frozen, key = jax.device_put((FROZEN, jax.random.key(1)), replicated(mesh))
    compiled = {
      turn: make_update(
        objective, turn, optimizers, shardings, mesh, accumulate
      )
      for turn in set(objective.cycle)
    }
    for step in range(updates):
      now, usual = at_update(objective, step=step)
      update = compiled[turn_of(objective, step)]
      rows, scalars = shard_batch(batch(step), mesh), (now, rates or usual)
      state, _ = update(state, frozen, rows, key, *scalars)
    return state

  return make


def both(optimizer):
  return {"student": optimizer, "auxiliary": optimizer}


def test_trees_of_one_turn_share_a_loss_but_not_a_rate(least_squares, train):
  objective = with_cycle(least_squares, JOINT)
  optimizers = both(Optimizer(learning_rate=0.1))
  start = objective.init(jax.random.key(0), FROZEN)
  rates = {"student": np.float32(0.1), "auxiliary": np.float32(0)}
  state = train(objective, optimizers, 1, rates)
  assert not np.array_equal(state.params["student"]["w"], start["student"]["w"])
  np.testing.assert_array_equal(
    state.params["auxiliary"]["w"], start["auxiliary"]["w"]
  )
  # Both gradients must come from one trace of the loss.
  assert objective.traces == ["student+auxiliary"]
  for opt_state in state.opt_state.values():
    assert applied(opt_state) == 1
  alone = train(with_cycle(least_squares, (("student",),)), optimizers, 1)
  np.testing.assert_allclose(
    state.params["student"]["w"], alone.params["student"]["w"], rtol=1e-6
  )


def test_each_tree_has_an_optimizer_of_its_own(least_squares, train):
  objective = with_cycle(least_squares, JOINT)
  adam = Optimizer(learning_rate=0.1)
  radam = Optimizer(learning_rate=0.1, kind="radam", b1=0.5)
  mixed = train(objective, {"student": adam, "auxiliary": radam}, 1)
  same = train(objective, both(adam), 1)
  np.testing.assert_array_equal(
    mixed.params["student"]["w"], same.params["student"]["w"]
  )
  moved = np.abs(mixed.params["auxiliary"]["w"] - same.params["auxiliary"]["w"])
  assert moved.max() > 1e-3
  # Adam's first step is the sign of the gradient. RAdam's first step is the
  # first moment, because RAdam does not use a second moment yet.
  steps = np.abs(
    mixed.params["student"]["w"]
    - objective.init(jax.random.key(0), FROZEN)["student"]["w"]
  )
  np.testing.assert_allclose(steps, 0.1, rtol=1e-3)


def test_a_cycle_of_five_critic_updates_trains_the_student_once(
  least_squares, train
):
  objective = with_cycle(least_squares, CRITIC)
  optimizers = both(Optimizer(learning_rate=0.1))
  counts = {
    updates: [
      int(applied(train(objective, optimizers, updates).opt_state[name]))
      for name in ("auxiliary", "student")
    ]
    for updates in (5, 12)
  }
  assert counts == {5: [5, 0], 12: [10, 2]}


def test_one_call_makes_whole_cycles(least_squares, train, mesh_of, at_update):
  objective = with_cycle(least_squares, CRITIC)
  optimizers = both(Optimizer(learning_rate=0.1, ema_decay=0.9))
  expected = train(objective, optimizers, 12)
  mesh = mesh_of(1)
  state = create_state(objective, optimizers, jax.random.key(0), FROZEN)
  shardings = tree_shardings(state, Layout(mesh=mesh))
  updates = make_updates(objective, optimizers, shardings, mesh)
  frozen, key = jax.device_put((FROZEN, jax.random.key(1)), replicated(mesh))
  actual, metrics = updates(
    jax.device_put(state, shardings),
    frozen,
    shard_batches([batch(i) for i in range(12)], mesh),
    key,
    *at_update(objective, [0.1] * 12, step=range(12)),
  )
  for a, b in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  assert metrics["auxiliary/loss"][1] == 10 * 8
  assert metrics["student/loss"][1] == 2 * 8


def test_the_decay_of_an_average_rises_by_its_own_tree_s_updates(
  least_squares, train
):
  objective = with_cycle(least_squares, CRITIC)
  optimizer = Optimizer(
    learning_rate=0.1, ema_decay=0.99, other_ema_decays=(0.05,)
  )
  states = [train(objective, both(optimizer), n) for n in (0, 6, 12)]
  weights = [np.asarray(s.params["student"]["w"]) for s in states]
  for name, decay in (("ema", 0.99), ("ema_0.05", 0.05)):
    average = weights[0]
    for update, new in enumerate(weights[1:]):
      d = min(decay, (1 + update) / (10 + update))
      average = average + (1 - d) * (new - average)
    actual = states[-1].averages["student"][name]["w"]
    np.testing.assert_allclose(actual, average, rtol=1e-5, atol=1e-6)
  assert states[-1].averages["auxiliary"] == {}


def test_a_slice_of_a_batch_keeps_groups_of_rows_together(
  least_squares, mesh_of, at_update
):
  seen = []

  class Seen(type(with_cycle(least_squares, (("student",),), rows=2))):
    def loss(self, turn, trees, batch, key, now):
      jax.debug.callback(
        lambda rows: seen.append(np.asarray(rows)), batch["image"][:, 0, 0, 0]
      )
      return super().loss(turn, trees, batch, key, now)

  objective, mesh = Seen(), mesh_of(1)
  optimizers = both(Optimizer(learning_rate=0.1))
  state = create_state(objective, optimizers, jax.random.key(0), FROZEN)
  shardings = tree_shardings(state, Layout(mesh=mesh))
  update = make_update(objective, ("student",), optimizers, shardings, mesh, 2)
  frozen, key = jax.device_put((FROZEN, jax.random.key(1)), replicated(mesh))
  image = np.arange(8, dtype=np.uint8)[:, None, None, None]
  rows = {"image": np.broadcast_to(image, (8, 1, 2, 3)).copy()}
  new, _ = update(
    jax.device_put(state, shardings),
    frozen,
    shard_batch(rows, mesh),
    key,
    *at_update(objective),
  )
  jax.block_until_ready(new)
  jax.effects_barrier()
  groups = sorted(
    tuple(int(v) for v in np.rint(rows * 127.5 + 127.5)) for rows in seen
  )
  assert groups == [(0, 1, 4, 5), (2, 3, 6, 7)]
