"""Flow maps of one dimension, against closed forms.

The bounds are 1.5 times the errors of a perceptron trained by each identity, or
1.5 times our own error where we had no such figure. Each wrong form is at least
five times worse than the right one.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.networks.mlp import MLP
from diffdistill.networks.network import LinenNetwork
from diffdistill.objectives import flow_map
from diffdistill.objectives.flow_map import FlowMapDistillation
from diffdistill.sampling.ddim import DDIM
from tests.objectives.given import loss_of
from tests.objectives.maps_given import (
  GAUSSIAN,
  MEAN,
  MODES,
  RIGHT,
  SCHEDULE,
  STD,
  Linear,
  add_knobs,
  along_flow,
  coefficients,
  denoiser_of,
  error,
  lattice,
  sampler_of,
  solver,
)

# The Eulerian identity has no derivative in s, and the Lagrangian identity has
# none in t. So it is enough to solve the one for s = 0 and the other for t = 1.
TIMES = {"eulerian": "t", "lagrangian": "s", "semigroup": "ts"}
BOUNDS = {
  "gaussian": {"eulerian": 0.0084, "lagrangian": 0.00225, "semigroup": 0.0326},
  "modes": {"eulerian": 0.0645, "lagrangian": 0.042, "semigroup": 0.138},
}


def goal_of(identity, count=0, **fields):
  network = Linear(times=TIMES[identity], count=count, **fields)
  return FlowMapDistillation(
    denoiser=denoiser_of(network), sampler=sampler_of(), identity=identity
  )


def times_of(identity, draws):
  """The times t and s of each row, from two draws in the unit interval."""
  if identity == "eulerian":
    return draws[0], np.zeros_like(draws[0])
  if identity == "lagrangian":
    return np.ones_like(draws[0]), draws[0]
  # Both ends have a share of the rows, and a quarter has s = t.
  one, two = (np.clip(1.2 * draw - 0.1, 0, 1) for draw in draws)
  two = np.where(np.arange(len(one)) % 4 == 0, one, two)
  return np.maximum(one, two), np.minimum(one, two)


def batch_of_rows(monkeypatch, identity, data, rows):
  share, *draws = lattice(rows, 3 if identity == "semigroup" else 2)
  t, s = times_of(identity, draws)
  return along_flow(monkeypatch, flow_map, data, t, s, share)


WRONG = {
  "eulerian": ({"derivative": -1.0}, {"x": 0.0}),
  "lagrangian": ({"derivative": -1.0}, {"x": 0.0}),
  "semigroup": ({"moved": 0.0},),
}


@pytest.mark.parametrize("identity", TIMES)
def test_each_identity_reaches_the_flow_map_of_a_gaussian(
  identity, monkeypatch
):
  goal, bound = goal_of(identity), BOUNDS["gaussian"][identity]
  rows = 2000 if identity == "semigroup" else 400
  batch = batch_of_rows(monkeypatch, identity, GAUSSIAN, rows)
  solve = solver(
    goal,
    batch,
    GAUSSIAN,
    linear=identity == "eulerian",
    rounds=1 if identity == "eulerian" else 12,
    knobs=add_knobs(monkeypatch),
  )
  reached, *wrong = (
    solve(**{**RIGHT, **change}) for change in ({}, *WRONG[identity])
  )
  monkeypatch.undo()
  found = error(goal, reached, GAUSSIAN)
  assert found < bound
  for params in wrong:
    # A wrong form may also diverge to NaN.
    assert not error(goal, params, GAUSSIAN) < 5 * found


@pytest.mark.parametrize("identity", TIMES)
def test_each_identity_reaches_the_quantile_map_of_two_modes(
  identity, monkeypatch
):
  sharp = {"sharpness": 12.0, "seed": 0} if identity == "lagrangian" else {}
  count = 300 if identity == "semigroup" else 150
  goal, bound = goal_of(identity, count, **sharp), BOUNDS["modes"][identity]
  batch = batch_of_rows(monkeypatch, identity, MODES, 4000)
  linear = identity == "eulerian"
  params = solver(
    goal, batch, MODES, linear=linear, rounds=1 if linear else 8
  )()
  monkeypatch.undo()
  assert error(goal, params, MODES) < bound
  # One step of the teacher makes only the mean of the data.
  ddim = DDIM(process=goal.sampler.process, clip=False)
  assert error(goal, MODES, MODES, ddim) > 5 * bound


def exact_velocity(x, t):
  """The velocity v of N(MEAN, STD^2) on the circle, in float64."""
  alpha, sigma = coefficients(t)
  variance = (alpha * STD) ** 2 + sigma**2
  away = x - alpha * MEAN
  x0 = MEAN + alpha * STD**2 / variance * away
  return alpha * sigma * away / variance - sigma * x0, variance


def expected_gradient(identity, x, t, s, weights):
  """The gradient of the loss by hand: equations (2) and (3) of flow_map.py."""
  rate = float(SCHEDULE.angle_rate(jnp.float32(0.5)))
  time = t if identity == "eulerian" else s
  powers = time[:, None] ** np.arange(6)
  slopes = np.arange(6) * time[:, None] ** np.maximum(np.arange(6) - 1, 0)
  features, by_time = (
    np.concatenate([part, part * x[:, None]], 1) for part in (powers, slopes)
  )
  by_angle = by_time / rate
  d = np.asarray(
    SCHEDULE.rotation(jnp.asarray(t, jnp.float32), jnp.asarray(s, jnp.float32)),
    np.float64,
  )
  cos, sin, u = np.cos(d), np.sin(d), features @ weights
  if identity == "eulerian":
    v, _ = exact_velocity(x, t)
    along = powers @ weights[6:] * v + by_angle @ weights
    g = cos * (v - u) - sin * (x + along)
    return -2 * (g[:, None] * features).mean(0)
  v, _ = exact_velocity(cos * x - sin * u, s)
  miss = sin * x + cos * u - sin * (by_angle @ weights) - v
  by_weights = cos[:, None] * features - sin[:, None] * by_angle
  return 2 * (miss[:, None] * by_weights).mean(0)


@pytest.mark.parametrize("identity", ["eulerian", "lagrangian"])
def test_the_gradient_away_from_the_optimum_holds_the_target_fixed(
  identity, monkeypatch
):
  share, t, s = lattice(400, 3)
  t, s = 0.1 + 0.85 * np.maximum(t, s), 0.1 + 0.85 * np.minimum(t, s)
  batch = along_flow(monkeypatch, flow_map, GAUSSIAN, t, s, share)
  goal = goal_of(identity)
  alpha, sigma = coefficients(t)
  eps = np.asarray(jax.random.normal(), np.float64).ravel()
  x_t = alpha * np.asarray(batch["image"], np.float64).ravel() + sigma * eps
  weights = np.cos(np.arange(12.0))
  expected = expected_gradient(identity, x_t, t, s, weights)

  def gradient():
    def loss(params):
      trees = {"teacher": GAUSSIAN, "student": params}
      return loss_of(goal, trees, batch, jax.random.key(0), guided=0)[0]

    found = jax.jit(jax.grad(loss))(jnp.asarray(weights, jnp.float32)[None])
    return (
      np.abs(np.asarray(found)[0] - expected).max() / np.abs(expected).max()
    )

  assert gradient() < 1e-3
  # If the target is not fixed, the optimum is the same, but not the gradient.
  monkeypatch.setattr(jax.lax, "stop_gradient", lambda x: x)
  assert gradient() > 0.05


def test_settings_without_a_sense_are_refused_in_one_line():
  goal = goal_of("lagrangian")
  one_time = LinenNetwork(
    module=MLP(width=4, depth=1, out_channels=1), image_shape=(1, 1, 1)
  )
  for fields, message in (
    ({"identity": "euler"}, "identity is 'euler'; pass one of lagrangian"),
    ({"identity": "semigroup", "equal": 0.0}, "equal is 0, but the semigroup"),
    ({"equal": 1.5}, "equal is 1.5"),
    (
      {"sampler": DDIM(process=goal.denoiser.process)},
      "made for flow_map, not DDIM; pass sampler.kind=flow_map",
    ),
    (
      {"denoiser": dataclasses.replace(goal.denoiser, network=one_time)},
      "model.network has one; pass model.network.two_times=True",
    ),
  ):
    with pytest.raises(ValueError, match=message) as refusal:
      dataclasses.replace(goal, **fields)
    assert "\n" not in str(refusal.value)
