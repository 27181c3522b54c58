import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffdistill.diffusion.prediction import Prediction, from_x0
from diffdistill.diffusion.process import GaussianProcess, expand_like
from diffdistill.diffusion.schedule import (
  Cosine,
)
from tests.diffusion.given import SCHEDULES

ONES = np.ones((4, 1, 1, 2), np.float32)
every_schedule = pytest.mark.parametrize("name", SCHEDULES)

values = st.lists(st.floats(-2, 2, width=32), min_size=8, max_size=8).map(
  lambda v: jnp.asarray(v, jnp.float32).reshape(4, 1, 1, 2)
)
# Three falling times per example, well apart and away from 0 and 1.
falling = st.lists(
  st.tuples(st.floats(0.7, 0.98), st.floats(0.4, 0.6), st.floats(0.02, 0.3)),
  min_size=4,
  max_size=4,
).map(lambda t: tuple(jnp.asarray(t, jnp.float32).T))
few = settings(deadline=None, max_examples=8)


def process_of(name):
  return GaussianProcess(schedule=SCHEDULES[name])


def coefficients(process, t):
  """alpha and sigma in float64, one of each per example."""
  schedule = process.schedule
  return (
    np.asarray(f(t), np.float64) for f in (schedule.alpha, schedule.sigma)
  )


def test_expand_like_appends_axes_of_size_one():
  t = jnp.array([0.1, 0.2])
  assert expand_like(t, jnp.zeros((2, 3, 3, 1))).shape == (2, 1, 1, 1)


@every_schedule
@few
@given(x0=values, eps=values, times=falling)
def test_ddim_with_true_x0_and_eps_gives_the_true_x_s(name, x0, eps, times):
  process, (t, s, r) = process_of(name), times
  truth = Prediction(x0=x0, eps=eps)
  x_t = process.diffuse(x0, eps, t)
  x_s = process.ddim(x_t, truth, t, s)
  # The tolerance grows with sigma, which is up to 80 for EDM.
  atol = 3e-6 * max(1, float(process.schedule.sigma(t).max()))
  np.testing.assert_allclose(x_s, process.diffuse(x0, eps, s), atol=atol)
  np.testing.assert_allclose(
    process.ddim(x_s, truth, s, r), process.ddim(x_t, truth, t, r), atol=atol
  )
  np.testing.assert_allclose(
    process.ddim(x_t, truth, t, t), x_t, rtol=1e-6, atol=1e-6
  )


@every_schedule
@few
@given(x_t=values, x0=values, times=falling)
def test_ddim_agrees_with_equation_12_of_its_paper(name, x_t, x0, times):
  """Equation 12 is x_s = alpha_s x0 + sigma_s (x_t - alpha_t x0) / sigma_t."""
  process, (t, s, _) = process_of(name), times
  alpha, sigma = process.coefficients(t, x_t)
  actual = process.ddim(x_t, from_x0(x0, x_t, alpha, sigma), t, s)
  alpha_t, sigma_t = coefficients(process, t)
  alpha_s, sigma_s = coefficients(process, s)
  ratio = (sigma_s / sigma_t)[:, None, None, None]
  from_x0_ = (alpha_s - sigma_s / sigma_t * alpha_t)[:, None, None, None]
  np.testing.assert_allclose(
    actual, from_x0_ * np.asarray(x0) + ratio * np.asarray(x_t), atol=1e-5
  )


@every_schedule
def test_a_step_to_time_0_returns_exactly_x0(name):
  process = process_of(name)
  x0, x_t = jnp.asarray(0.37 * ONES), jnp.asarray(-1.3 * ONES)
  t, s = jnp.array([0.001, 0.2, 0.5, 1.0]), jnp.zeros(4)
  prediction = from_x0(x0, x_t, *process.coefficients(t, x_t))
  np.testing.assert_array_equal(process.ddim(x_t, prediction, t, s), x0)
  mean, std = process.posterior(x_t, x0, t, s, 0.5)
  np.testing.assert_array_equal(mean, x0)
  np.testing.assert_array_equal(std, 0)


@every_schedule
def test_steps_between_extreme_times_are_finite(name):
  process = process_of(name)
  x0, x_t = jnp.asarray(0.3 * ONES), jnp.asarray(-2 * ONES)
  for t, s in (
    ([0.0, 1e-4, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0]),
    ([0.0, 1e-4, 0.5, 1.0], [0.0, 1e-4, 0.5, 1.0]),
    ([1.0, 1.0, 1.0, 0.5], [1e-4, 0.5, 0.999, 1e-4]),
  ):
    t, s = jnp.array(t), jnp.array(s)
    prediction = from_x0(x0, x_t, *process.coefficients(t, x_t))
    assert np.all(np.isfinite(process.ddim(x_t, prediction, t, s)))
    for noise in (0.0, 0.3, 1.0):
      mean, std = process.posterior(x_t, x0, t, s, noise)
      assert np.all(np.isfinite(mean))
      assert np.all(np.asarray(std) >= 0)


@every_schedule
@few
@given(x_t=values, x0=values, times=falling)
def test_posterior_agrees_with_bayes_rule(name, x_t, x0, times):
  """The posterior is, up to a constant, the product of two normal densities.

  N(x_s; alpha_s x0, sigma_s^2) is the prior and N(x_t; a x_s, step) the
  likelihood.
  """
  process, (t, s, _) = process_of(name), times
  mean, std = process.posterior(x_t, x0, t, s)
  alpha_t, sigma_t = coefficients(process, t)
  alpha_s, sigma_s = coefficients(process, s)
  a = alpha_t / alpha_s
  step = sigma_t**2 - a**2 * sigma_s**2
  precision = 1 / sigma_s**2 + a**2 / step

  def weigh(w, x):
    return w[:, None, None, None] * np.asarray(x, np.float64)

  expected = weigh(1 / precision, weigh(alpha_s / sigma_s**2, x0)) + weigh(
    a / step / precision, x_t
  )
  np.testing.assert_allclose(mean, expected, atol=1e-5)
  np.testing.assert_allclose(std.ravel(), precision**-0.5, rtol=1e-5)


@every_schedule
def test_noise_interpolates_between_the_two_log_variances(name):
  """The two variances are (1 - r) sigma_s^2 and (1 - r) sigma_t^2.

  Salimans & Ho 2022, Eq. 5.
  """
  process = process_of(name)
  t, s = jnp.array([1.0, 0.7, 0.3, 0.1]), jnp.array([0.6, 0.65, 0.1, 0.05])
  x = jnp.asarray(ONES)
  alpha_t, sigma_t = coefficients(process, t)
  alpha_s, sigma_s = coefficients(process, s)
  one_minus_r = 1 - (alpha_t * sigma_s / (sigma_t * alpha_s)) ** 2
  small, large = one_minus_r * sigma_s**2, one_minus_r * sigma_t**2
  for noise in (0.0, 0.25, 1.0):
    std = process.posterior(x, x, t, s, noise)[1].ravel()
    expected = np.exp((1 - noise) * np.log(small) + noise * np.log(large))
    np.testing.assert_allclose(np.square(std), expected, rtol=1e-4)


@every_schedule
@few
@given(x_t=values, x0=values, times=falling)
def test_two_posterior_steps_equal_one_long_step(name, x_t, x0, times):
  """q(x_r | x_t, x0) is the same through s or directly: Chapman-Kolmogorov."""
  process, (t, s, r) = process_of(name), times
  mean_s, std_s = process.posterior(x_t, x0, t, s)
  mean_r, std_r = process.posterior(mean_s, x0, s, r)
  slope = process.posterior(mean_s + 1, x0, s, r)[0] - mean_r
  direct_mean, direct_std = process.posterior(x_t, x0, t, r)
  np.testing.assert_allclose(mean_r, direct_mean, atol=2e-5)
  variance = std_r**2 + slope[..., :1] ** 2 * std_s**2
  # The tolerance allows for the slope, which is a difference of numbers near 1
  # and has an error of 1e-6.
  np.testing.assert_allclose(variance, direct_std**2, rtol=1e-4, atol=1e-7)


@every_schedule
def test_chained_posteriors_keep_the_moments_of_the_marginal(name):
  """At t = 0.25 the mean is still alpha x0 and the deviation sigma."""
  process, x0 = process_of(name), jnp.full((1, 1, 1, 1), 0.7)
  times = [jnp.array([t]) for t in (1.0, 0.75, 0.5, 0.25)]
  alpha, sigma = process.coefficients(times[0], x0)
  mean, variance = alpha * x0, sigma**2
  for t, s in itertools.pairwise(times):
    lower, std = process.posterior(mean, x0, t, s)
    # The slope is a difference of distant values, which loses little precision.
    width = jnp.sqrt(variance) + 1
    slope = (process.posterior(mean + width, x0, t, s)[0] - lower) / width
    mean, variance = lower, slope**2 * variance + std**2
  alpha, sigma = process.coefficients(times[-1], x0)
  np.testing.assert_allclose(mean, alpha * x0, rtol=1e-5)
  np.testing.assert_allclose(jnp.sqrt(variance), sigma, rtol=1e-4)
  if name == "cosine":
    assert float(mean[0, 0, 0, 0]) == pytest.approx(0.6467, abs=1e-4)
    assert float(sigma[0, 0, 0, 0]) == pytest.approx(0.3827, abs=1e-4)


def test_samples_of_chained_posteriors_have_the_moments_of_the_marginal():
  process, n = GaussianProcess(schedule=Cosine()), 100_000
  x0 = jnp.full((n, 1, 1, 1), 0.7)
  keys = jax.random.split(jax.random.key(3), 4)
  times = [jnp.full(n, t) for t in (1.0, 0.75, 0.5, 0.25)]
  x = process.diffuse(x0, jax.random.normal(keys[0], x0.shape), times[0])
  for key, t, s in zip(keys[1:], times[:-1], times[1:], strict=True):
    mean, std = process.posterior(x, x0, t, s)
    x = mean + std * jax.random.normal(key, x.shape)
  # The tolerances are four standard errors of 1e5 samples.
  assert float(x.mean()) == pytest.approx(0.6467, abs=0.005)
  assert float(x.std()) == pytest.approx(0.3827, abs=0.0035)
