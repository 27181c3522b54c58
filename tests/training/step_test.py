import dataclasses

import jax
import numpy as np
import pytest

from diffdistill.arrays import Condition
from diffdistill.run import from_config
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.sharding import (
  Layout,
  replicated,
  shard_batch,
  tree_shardings,
)
from diffdistill.training.state import create_state
from diffdistill.training.step import make_evaluate, make_update


def start(objective, optimizer, frozen, mesh, accumulate=1):
  """Makes (state, updates by turn, frozen trees) on a mesh."""
  optimizers = dict.fromkeys(objective.trees, optimizer)
  state = create_state(objective, optimizers, jax.random.key(0), frozen)
  shardings = tree_shardings(state, Layout(mesh=mesh))
  updates = {
    "+".join(turn): make_update(
      objective, turn, optimizers, shardings, mesh, accumulate
    )
    for turn in objective.cycle
  }
  frozen = jax.device_put(frozen, tree_shardings(frozen, Layout(mesh=mesh)))
  return jax.device_put(state, shardings), updates, frozen


@pytest.fixture(scope="module")
def arguments(at_update):
  """The function arguments(...) makes (batch, key, now, rates) on a mesh."""

  def make(objective, rows, mesh, **scalars):
    traced = (jax.random.key(1), *at_update(objective, **scalars))
    key, now, rates = jax.device_put(traced, replicated(mesh))
    return shard_batch(rows, mesh), key, now, rates

  return make


def rows(size=8, shape=(1, 2, 3)):
  random = np.random.default_rng(0)
  return {
    "image": random.integers(0, 256, (size, *shape), np.uint8),
    "label": (np.arange(size) % 3).astype(np.int32),
  }


def teacher(size=6):
  return {"teacher": {"w": jax.random.normal(jax.random.key(5), (size, size))}}


def equal(a, b):
  return all(
    jax.tree.leaves(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))
  )


@pytest.mark.parametrize("name", ["student", "auxiliary"])
def test_an_update_changes_only_the_trees_of_its_turn(
  least_squares, mesh_of, arguments, name
):
  optimizer = Optimizer(learning_rate=0.1, ema_decay=0.9)
  mesh = mesh_of(2)
  state, updates, frozen = start(least_squares(), optimizer, teacher(), mesh)
  before, frozen_before = jax.device_get((state, frozen))
  new, _ = updates[name](
    state, frozen, *arguments(least_squares(), rows(), mesh)
  )
  after = jax.device_get(new)
  (other,) = {"student", "auxiliary"} - {name}
  for part in ("params", "opt_state"):
    old, now = getattr(before, part), getattr(after, part)
    assert set(now) == {"student", "auxiliary"}
    assert equal(old[other], now[other]), part
    assert not equal(old[name], now[name]), part
  # Only the student has a moving average, because the round hands on the
  # student.
  assert set(after.averages["student"]) == {"ema"}
  assert after.averages["auxiliary"] == {}
  assert equal(before.averages, after.averages) == (name == "auxiliary")
  assert equal(frozen_before, jax.device_get(frozen))
  assert after.step == 1


def test_state_is_donated_and_frozen_trees_are_not(
  least_squares, mesh_of, arguments
):
  mesh = mesh_of(1)
  state, updates, frozen = start(
    least_squares(), Optimizer(learning_rate=0.1), teacher(), mesh
  )
  given = arguments(least_squares(), rows(), mesh)
  updates["student"](state, frozen, *given)
  assert state.params["student"]["w"].is_deleted()
  assert all(
    leaf.is_deleted()
    for leaf in jax.tree.leaves(state.opt_state["student"])
    if leaf.ndim  # XLA cannot donate an input that no output depends on.
  )
  for leaf in jax.tree.leaves((frozen, given)):
    assert not leaf.is_deleted()


def test_each_step_and_each_turn_has_its_own_key(
  least_squares, mesh_of, arguments
):
  mesh = mesh_of(1)
  state, updates, frozen = start(
    least_squares(), Optimizer(learning_rate=0.0), teacher(), mesh
  )
  draws = []
  for name in ("student", "auxiliary", "student", "auxiliary"):
    state, metrics = updates[name](
      state, frozen, *arguments(least_squares(), rows(), mesh)
    )
    draws.append(float(metrics[f"{name}/draw"][0]))
  state = dataclasses.replace(
    state, step=jax.device_put(np.int32(0), replicated(mesh))
  )
  _, metrics = updates["student"](
    state, frozen, *arguments(least_squares(), rows(), mesh)
  )
  assert len(set(draws)) == 4
  assert float(metrics["student/draw"][0]) == draws[0]


@pytest.mark.parametrize("devices", [1, 8])
def test_an_evaluation_gives_an_update_s_metrics_and_changes_nothing(
  least_squares, mesh_of, devices, arguments
):
  mesh, goal = mesh_of(devices), least_squares()
  state, updates, frozen = start(
    goal, Optimizer(learning_rate=0.1), teacher(), mesh
  )
  batch, key, now, rates = arguments(goal, rows(), mesh)
  before = jax.device_get(state.params)
  evaluate = make_evaluate(goal, mesh)
  metrics = evaluate({**frozen, **state.params}, batch, key, now)
  assert equal(before, jax.device_get(state.params))
  _, updated = updates["student"](state, frozen, batch, key, now, rates)
  # An evaluation must report the loss of the turn that trains the student.
  assert set(metrics) == {"student/loss", "student/draw"}
  for value, expected in zip(
    metrics["student/loss"], updated["student/loss"], strict=True
  ):
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("devices", "unroll"), [(1, True), (8, True), (8, False)]
)
def test_accumulation_gives_the_gradient_of_the_whole_batch(
  least_squares, mesh_of, monkeypatch, devices, unroll, arguments
):
  # The program must loop here. It unrolls loops on a CPU, but not on
  # accelerators.
  monkeypatch.setattr("diffdistill.training.step.unrolled", lambda _: unroll)
  mesh = mesh_of(devices)
  results = []
  for accumulate in (1, 4):
    optimizer = Optimizer(learning_rate=0.1, eps=1.0, clip=0.0)
    state, updates, frozen = start(
      least_squares(), optimizer, teacher(), mesh, accumulate
    )
    state, metrics = updates["student"](
      state, frozen, *arguments(least_squares(), rows(16), mesh)
    )
    results.append((state.params["student"]["w"], metrics))
  (whole, whole_metrics), (parts, part_metrics) = results
  np.testing.assert_allclose(whole, parts, rtol=1e-5, atol=1e-6)
  for name in ("student/loss", "student/grad_norm"):
    for total, part in zip(
      whole_metrics[name], part_metrics[name], strict=True
    ):
      np.testing.assert_allclose(total, part, rtol=1e-5, err_msg=name)
  # The loss must count all 16 rows, and each of the 4 parts must have its own
  # key.
  assert float(part_metrics["student/loss"][1]) == 16
  assert float(part_metrics["student/draw"][1]) == 4


@pytest.fixture
def seen(least_squares):
  """Gives LeastSquares and a list that gets the dtypes of each batch."""
  batches = []

  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Seen(least_squares):
    def loss(self, turn, trees, batch, key, now):
      batches.append(jax.tree.map(lambda rows: rows.dtype, batch))
      return super().loss(turn, trees, batch, key, now)

  return Seen(), batches


def flipped_rows(size):
  return {**rows(size), "flip": np.arange(size) % 3 == 1}


def by_hand(stored, params, frozen):
  """Computes LeastSquares' loss and its gradient's norm with NumPy."""
  image = stored["image"].astype(np.float64) / 127.5 - 1
  image[stored["flip"]] = image[stored["flip"], :, ::-1]
  x = image.reshape(len(image), -1)
  w = params["student"]["w"] + 0.1 * params["auxiliary"]["w"]
  error = x @ (w - frozen["teacher"]["w"]).astype(np.float64)
  gradient = 2 * x.T @ error / error.size
  return np.mean(error**2), np.linalg.norm(gradient)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_device_scales_and_mirrors_stored_images(
  seen, mesh_of, devices, accumulate, arguments
):
  mesh, (goal, heard_of) = mesh_of(devices), seen
  optimizer = Optimizer(learning_rate=0.1, clip=0.0)
  state, updates, frozen = start(goal, optimizer, teacher(), mesh, accumulate)
  params, weights = jax.device_get((state.params, frozen))
  stored = flipped_rows(16)
  loss, norm = by_hand(stored, params, weights)
  unflipped, _ = by_hand(
    {**stored, "flip": np.zeros(16, bool)}, params, weights
  )
  assert abs(loss / unflipped - 1) > 1e-3
  batch, key, now, rates = arguments(goal, stored, mesh)
  trees = {**frozen, **state.params}
  heard = [make_evaluate(goal, mesh)(trees, batch, key, now)]
  _, metrics = updates["student"](state, frozen, batch, key, now, rates)
  for total, count in (m["student/loss"] for m in (*heard, metrics)):
    assert float(total / count) == pytest.approx(loss, rel=1e-6)
  total, _ = metrics["student/grad_norm"]
  assert float(total) == pytest.approx(norm, rel=1e-6)
  assert heard_of
  for batch in heard_of:
    condition = Condition(label=np.dtype(np.int32))
    assert batch == {"image": np.float32, "condition": condition}


@pytest.fixture(scope="module")
def progressive(tiny_config):
  """Gives the objective of the tiny run, and a random frozen teacher."""
  built = from_config.build(tiny_config)
  objective = built.stages[1].objective
  params = built.denoiser.network.init(jax.random.key(2))
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(3), len(leaves))
  # The last layer of a new network is zero, so make all weights random.
  leaves = [
    leaf + 0.3 * jax.random.normal(key, leaf.shape)
    for leaf, key in zip(leaves, keys, strict=True)
  ]
  return objective, {"teacher": jax.tree.unflatten(structure, leaves)}


def first_update(progressive, mesh, arguments):
  objective, frozen = progressive
  optimizer = Optimizer(learning_rate=0.1, eps=1.0)
  state, updates, frozen = start(objective, optimizer, frozen, mesh)
  state, metrics = updates["student"](
    state, frozen, *arguments(objective, rows(16, (2, 2, 1)), mesh, num_steps=4)
  )
  return jax.device_get((metrics, state.params))


@pytest.fixture(scope="module")
def on_one_device(progressive, mesh_of, arguments):
  return first_update(progressive, mesh_of(1), arguments)


@pytest.mark.parametrize(("data", "fsdp"), [(2, 1), (8, 1), (1, 8)])
def test_the_mesh_changes_no_result(
  progressive, on_one_device, mesh_of, monkeypatch, data, fsdp, arguments
):
  # This setting splits even a small network over fsdp.
  monkeypatch.setattr("diffdistill.training.sharding.MIN_SIZE_TO_SPLIT", 1)
  expected, params = on_one_device
  actual, new_params = first_update(progressive, mesh_of(data, fsdp), arguments)
  assert expected["student/loss"][0] > 1e-3
  for name, (total, count) in expected.items():
    np.testing.assert_allclose(actual[name][0], total, rtol=1e-6, err_msg=name)
    assert actual[name][1] == count
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    new_params,
    params,
  )
