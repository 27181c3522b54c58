import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.training.optimizers import Optimizer, applied
from diffdistill.training.sharding import (
  Layout,
  replicated,
  shard_batch,
  tree_shardings,
)
from diffdistill.training.state import create_state
from diffdistill.training.step import make_update


def rates(num_updates, **fields):
  optimizer = Optimizer(learning_rate=0.8, **fields)
  return [optimizer.rate(step, num_updates) for step in range(num_updates)]


def test_the_rate_is_constant_after_the_warm_up():
  np.testing.assert_allclose(rates(6, warmup=4), [0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_linear_decay_ends_one_step_before_zero():
  expected = [0.4, 0.8, 0.8, 0.6, 0.4, 0.2]
  np.testing.assert_allclose(rates(6, warmup=2, decay="linear"), expected)


def test_cosine_decay_agrees_with_its_formula():
  actual = rates(9, warmup=1, decay="cosine")
  np.testing.assert_allclose(actual[1], 0.8)
  np.testing.assert_allclose(actual[5], 0.4)
  np.testing.assert_allclose(actual[8], 0.4 * (1 + np.cos(np.pi * 7 / 8)))


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_the_rate_decays_to_zero_at_the_round_s_end(decay):
  optimizer = Optimizer(learning_rate=0.8, warmup=3, decay=decay)
  assert optimizer.rate(50, 50) == pytest.approx(0, abs=1e-12)


def test_a_round_shorter_than_its_warm_up_only_warms_up():
  np.testing.assert_allclose(
    rates(3, warmup=8, decay="cosine"), [0.1, 0.2, 0.3]
  )


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"decay": "step"}, "decay is 'step'; pass one of constant, linear"),
    ({"learning_rate": -1.0}, "learning_rate is -1.0; pass 0 or more"),
    ({"warmup": -1}, "warmup is -1; pass 0"),
    ({"weight_decay": -0.1}, "weight_decay is -0.1; pass 0"),
    ({"clip": -1.0}, "clip is -1.0; pass 0"),
    ({"ema_decay": 1.0}, r"ema_decay is 1.0; pass a value in \[0, 1\)"),
    ({"ema_decay": -0.1}, "ema_decay is -0.1"),
    ({"kind": "sgd"}, "kind is 'sgd'; pass one of adam, radam"),
    ({"other_ema_decays": (0.9, 0.9)}, "all different"),
    ({"other_ema_decays": (0.0,)}, "pass decays above 0"),
  ],
)
def test_values_out_of_range_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    Optimizer(**{"learning_rate": 0.1, **fields})


def test_weight_decay_is_decoupled_from_the_gradient():
  params = {"w": jnp.array([1.0, -2.0, 3.0])}
  grads = {"w": jnp.array([0.3, 0.2, -0.5])}

  def direction(weight_decay, grads=grads):
    chain = Optimizer(
      learning_rate=9.0, weight_decay=weight_decay
    ).transformation()
    return chain.update(grads, chain.init(params), params)[0]["w"]

  difference = direction(0.25) - direction(0.0)
  np.testing.assert_allclose(difference, 0.25 * params["w"], rtol=1e-5)
  zero = direction(0.25, {"w": jnp.zeros(3)})
  np.testing.assert_allclose(zero, 0.25 * params["w"], rtol=1e-6)


class Setting:
  """A compiled update of LeastSquares on a mesh, with its arguments."""

  def __init__(self, least_squares, at_update, mesh, **fields):
    self.objective = least_squares()
    self.optimizer = Optimizer(learning_rate=0.1, **fields)
    self.mesh = mesh
    key = jax.random.key(0)
    self.frozen = {"teacher": {"w": jax.random.normal(key, (6, 6))}}
    optimizers = dict.fromkeys(self.objective.trees, self.optimizer)
    state = create_state(self.objective, optimizers, key, self.frozen)
    shardings = tree_shardings(state, Layout(mesh=mesh))
    self.state = jax.device_put(state, shardings)
    self.update = make_update(
      self.objective, ("student",), optimizers, shardings, mesh
    )
    self.scalars = at_update(self.objective)

  def __call__(self, state, image):
    place = replicated(self.mesh)
    # The batch holds floats in place of bytes, so that a test can choose images
    # of any size.
    batch = shard_batch({"image": (image + 1) * 127.5}, self.mesh)
    frozen, key, now, rates = jax.device_put(
      (self.frozen, jax.random.key(1), *self.scalars), place
    )
    return self.update(state, frozen, batch, key, now, rates)


def images(seed=0):
  """Makes images of different sizes, so gradients are clipped differently."""
  random = np.random.default_rng(seed)
  scale = np.array([0.1, 5, 0.1, 0.1, 0.1, 0.1, 0.1, 9])[:, None, None, None]
  return (scale * random.normal(size=(8, 1, 2, 3))).astype(np.float32)


# With Adam's eps = 1, the direction of an update depends on the size of the
# gradient.
@pytest.mark.parametrize("devices", [1, 8])
def test_the_mean_gradient_of_all_devices_is_clipped(
  least_squares, at_update, mesh_of, devices
):
  setting = Setting(
    least_squares, at_update, mesh_of(devices), clip=0.5, eps=1.0
  )
  before = jax.device_get(setting.state.params)

  def gradient(rows):
    return jax.grad(
      lambda w: setting.objective.loss(
        ("student",),
        {**setting.frozen, **before, "student": {"w": w}},
        {"image": rows},
        jax.random.key(0),
        setting.scalars[0],
      )[0]
    )(jnp.asarray(before["student"]["w"]))

  def clipped(g):
    return g / max(np.linalg.norm(g) / 0.5, 1)

  def moved(g):  # The first step of Adam.
    return before["student"]["w"] - 0.1 * g / (np.abs(g) + 1.0)

  rows = images()
  expected = moved(clipped(gradient(rows)))
  per_device = np.mean([clipped(gradient(row[None])) for row in rows], axis=0)
  assert np.abs(moved(per_device) - expected).max() > 1e-3
  state, metrics = setting(setting.state, rows)
  # A step is at most 0.1. The tolerance is for Adam's bias correction, whose
  # relative error is 1e-5.
  np.testing.assert_allclose(
    state.params["student"]["w"], expected, rtol=1e-6, atol=1e-6
  )
  np.testing.assert_allclose(
    metrics["student/grad_norm"][0], np.linalg.norm(gradient(rows)), rtol=1e-5
  )


def test_gradients_that_are_not_finite_are_skipped_and_counted(
  least_squares, at_update, mesh_of
):
  setting = Setting(
    least_squares, at_update, mesh_of(1), ema_decay=0.9, weight_decay=0.1
  )
  bad = images()
  bad[3, 0, 1, 2] = np.nan
  state, counts = setting.state, []
  # The first updates have finite gradients, so that the average already differs
  # from the weights.
  for rows in (images(1), bad, bad, images(2), bad):
    before = jax.device_get(state)
    state, metrics = setting(state, rows)
    after = jax.device_get(state)
    unchanged = not np.isfinite(rows).all()
    for part in (
      lambda state: state.params["student"],
      lambda state: state.averages["student"]["ema"],
    ):
      old, new = (part(s)["w"] for s in (before, after))
      assert np.array_equal(old, new) == unchanged
    assert after.step == before.step + 1
    counts.append(
      tuple(
        int(metrics[f"student/{name}"][0])
        for name in ("skipped", "skipped_in_a_row")
      )
    )
  assert counts == [(0, 0), (1, 1), (2, 2), (2, 0), (3, 1)]


def test_second_moments_are_means_of_squared_gradients():
  optimizer = Optimizer(learning_rate=1.0, clip=0.0, b2=0.75)
  params, chain = {"w": jnp.zeros(2)}, optimizer.transformation()
  state = chain.init(params)
  assert not np.any(optimizer.second_moments(state)["w"])
  assert int(applied(state)) == 0
  gradients = ([2.0, 0.0], [np.nan, 1.0], [4.0, -1.0])
  for gradient in gradients:
    _, state = chain.update({"w": jnp.array(gradient)}, state, params)
  # The optimizer skipped the second gradient. The average gives gradient i the
  # weight 0.75^(n - i) / 4, divided by the sum of the weights.
  weights = np.array([0.75, 1.0])
  expected = (weights @ np.array([[4.0, 0.0], [16.0, 1.0]])) / weights.sum()
  np.testing.assert_allclose(
    optimizer.second_moments(state)["w"], expected, rtol=1e-6
  )
  assert int(applied(state)) == 2


def test_a_clip_of_zero_means_no_clipping():
  params = {"w": jnp.zeros(2)}
  grads = {"w": jnp.array([30.0, -40.0])}
  chain = Optimizer(learning_rate=1.0, clip=0.0, eps=1.0).transformation()
  direction, _ = chain.update(grads, chain.init(params), params)
  # The tolerance is for Adam's bias correction: 1 - 0.999 in float32 has a
  # relative error of 1e-5.
  np.testing.assert_allclose(direction["w"], [30 / 31, -40 / 41], rtol=2e-5)


def test_optimizers_compare_by_value():
  assert Optimizer(learning_rate=0.1) == Optimizer(learning_rate=0.1)
  with pytest.raises(dataclasses.FrozenInstanceError):
    Optimizer(learning_rate=0.1).clip = 2.0
