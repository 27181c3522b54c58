import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffdistill.diffusion.prediction import (
  OUTPUTS,
  Prediction,
  clip,
  from_prediction,
  from_x0,
  output_channels,
  to_prediction,
)
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import (
  Cosine,
  RectifiedFlow,
)
from tests.diffusion.given import SCHEDULES

SINGLE = tuple(output for output in OUTPUTS if output != "both")


def images(values):
  return jnp.asarray(values, jnp.float32).reshape(-1, 1, 1, 2)


floats = st.lists(st.floats(-2, 2, width=32), min_size=8, max_size=8).map(
  images
)
# These times avoid both ends, where a division by a small alpha or sigma loses
# precision.
times = st.lists(st.floats(0.1, 0.9), min_size=4, max_size=4).map(
  lambda t: jnp.asarray(t, jnp.float32)
)


@pytest.mark.parametrize("name", SCHEDULES)
@settings(deadline=None, max_examples=10)
@given(x0=floats, eps=floats, t=times)
def test_every_output_gives_back_the_same_x0_and_eps(name, x0, eps, t):
  process = GaussianProcess(schedule=SCHEDULES[name])
  alpha, sigma = process.coefficients(t, x0)
  x_t, truth = process.diffuse(x0, eps, t), Prediction(x0=x0, eps=eps)
  for output in SINGLE:
    out = from_prediction(output, truth, alpha, sigma)
    actual = to_prediction(output, out, x_t, alpha, sigma)
    # The tolerance allows for dividing x_t, which is up to 80, by 0.01.
    np.testing.assert_allclose(actual.x0, x0, atol=2e-4, err_msg=output)
    np.testing.assert_allclose(actual.eps, eps, atol=2e-4, err_msg=output)


@pytest.mark.parametrize("name", ["cosine", "linear", "flow"])
@settings(deadline=None, max_examples=5)
@given(p=floats, x_t=floats, t=times)
def test_converting_through_all_outputs_gives_back_the_first(name, p, x_t, t):
  """Converts any x0 to eps, v, velocity, score and back to x0."""
  process = GaussianProcess(schedule=SCHEDULES[name])
  alpha, sigma = process.coefficients(t, x_t)
  cycle = ("x0", "eps", "v", "velocity", "score", "x0")
  out = p
  for source, target in itertools.pairwise(cycle):
    prediction = to_prediction(source, out, x_t, alpha, sigma)
    out = from_prediction(target, prediction, alpha, sigma)
  np.testing.assert_allclose(out, p, atol=1e-4)


@pytest.mark.parametrize("output", SINGLE)
@pytest.mark.parametrize("name", SCHEDULES)
def test_x0_and_eps_combine_to_x_t_and_are_finite(name, output):
  process = GaussianProcess(schedule=SCHEDULES[name])
  t = jnp.array([0.0, 1e-3, 0.7, 1.0])
  x_t = images([1.3, -0.4, 0.1, 2.0, -1.0, 0.8, -0.2, 0.5])
  out = images([-0.6, 0.9, 0.3, -1.7, 1.1, 0.2, -0.8, 1.4])
  alpha, sigma = process.coefficients(t, x_t)
  prediction = to_prediction(output, out, x_t, alpha, sigma)
  x0, eps, alpha, sigma = (np.asarray(v) for v in (*prediction, alpha, sigma))
  assert np.all(np.isfinite(x0))
  assert np.all(np.isfinite(eps))
  line = alpha * x0 + sigma * eps
  # The error is relative to the terms, because their sum may be near 0.
  scale = np.abs(alpha * x0) + np.abs(sigma * eps)
  np.testing.assert_array_less(np.abs(line - x_t), 1e-6 * scale + 1e-6)


def test_each_output_agrees_with_its_definition():
  alpha, sigma = jnp.full((1, 1, 1, 1), 0.6), jnp.full((1, 1, 1, 1), 0.8)
  p = Prediction(x0=images([1.0, -2.0]), eps=images([0.5, 0.25]))
  expected = {
    "x0": [1.0, -2.0],
    "eps": [0.5, 0.25],
    "v": [0.6 * 0.5 - 0.8 * 1, 0.6 * 0.25 + 0.8 * 2],
    "velocity": [0.5 - 1, 0.25 + 2],
    "score": [-0.5 / 0.8, -0.25 / 0.8],
  }
  for output, values in expected.items():
    np.testing.assert_allclose(
      from_prediction(output, p, alpha, sigma).ravel(), values, rtol=1e-6
    )


def test_v_is_the_derivative_in_angle_and_velocity_the_one_in_time():
  x0, eps = images([1.0, -0.5]), images([0.3, 2.0])
  cosine, flow = (
    GaussianProcess(schedule=s) for s in (Cosine(), RectifiedFlow())
  )
  t, one = jnp.array([0.4]), jnp.ones(1)
  for process, output in ((cosine, "v"), (flow, "velocity")):
    _, derivative = jax.jvp(
      lambda t, p=process: p.diffuse(x0, eps, t), (t,), (one,)
    )
    slope = process.schedule.rotation(one, 0 * one) if output == "v" else one
    alpha, sigma = process.coefficients(t, x0)
    expected = from_prediction(output, Prediction(x0, eps), alpha, sigma)
    np.testing.assert_allclose(derivative / slope[0], expected, rtol=1e-5)


@settings(deadline=None, max_examples=10)
@given(x0=floats, eps=floats, x_t=floats, t=times)
def test_output_both_averages_x0_as_the_paper_does(x0, eps, x_t, t):
  """The paper's formula is x0 = sigma^2 x + alpha (z - sigma eps).

  Salimans & Ho 2022, section 4.
  """
  alpha, sigma = GaussianProcess(schedule=Cosine()).coefficients(t, x_t)
  out = jnp.concatenate([x0, eps], axis=-1)
  actual = to_prediction("both", out, x_t, alpha, sigma)
  expected = sigma**2 * x0 + alpha * (x_t - sigma * eps)
  np.testing.assert_allclose(actual.x0, expected, atol=1e-5)
  np.testing.assert_allclose(
    alpha * actual.x0 + sigma * actual.eps, x_t, atol=1e-5
  )


@pytest.mark.parametrize("name", SCHEDULES)
def test_output_both_is_exact_if_x0_and_eps_are(name):
  process = GaussianProcess(schedule=SCHEDULES[name])
  x0 = images([0.5, -1, 0.2, 0.7, 0.1, -0.3, 0.6, 0.9])
  eps = images([1.5, 0.3, -0.2, 1, -0.7, -1.2, 0.4, -0.1])
  t = jnp.array([0.2, 0.4, 0.6, 0.8])
  alpha, sigma = process.coefficients(t, x0)
  x_t = process.diffuse(x0, eps, t)
  out = jnp.concatenate([x0, eps], axis=-1)
  actual = to_prediction("both", out, x_t, alpha, sigma)
  np.testing.assert_allclose(actual.x0, x0, atol=1e-5)
  np.testing.assert_allclose(actual.eps, eps, atol=1e-4)


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_x0_output_is_not_rounded(name):
  """A network that outputs a constant x0 must predict exactly this constant."""
  process = GaussianProcess(schedule=SCHEDULES[name])
  out = images(np.random.default_rng(0).normal(size=2000))
  alpha, sigma = process.coefficients(jnp.linspace(0, 1, 1000), out)
  actual = to_prediction("x0", out, out, alpha, sigma)
  np.testing.assert_array_equal(actual.x0, out)


def test_clip_bounds_x0_and_recomputes_eps():
  process = GaussianProcess(schedule=Cosine())
  x_t, t = images([3.0, -0.1, 0.2, -4.0]), jnp.array([0.3, 0.6])
  alpha, sigma = process.coefficients(t, x_t)
  x0 = images([1.7, 0.4, -0.2, -2.5])
  actual = clip(from_x0(x0, x_t, alpha, sigma), x_t, alpha, sigma)
  np.testing.assert_allclose(actual.x0.ravel(), [1, 0.4, -0.2, -1])
  np.testing.assert_allclose(
    alpha * actual.x0 + sigma * actual.eps, x_t, rtol=1e-6, atol=1e-6
  )


def test_output_both_doubles_channels_and_unknown_outputs_are_refused():
  assert output_channels("v", 3) == 3
  assert output_channels("both", 3) == 6
  one = jnp.ones((1, 1, 1, 1))
  with pytest.raises(ValueError, match="output is 'z'; pass one of x0"):
    output_channels("z", 3)
  with pytest.raises(ValueError, match="output is 'z'"):
    to_prediction("z", one, one, one, one)
  with pytest.raises(ValueError, match="output is 'both'"):
    from_prediction("both", Prediction(one, one), one, one)
