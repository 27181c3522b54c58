"""Tests of flow maps, schedules' derivatives and two-time predictions.

Let p = angle(t) and d = p_t - p_s, and let x and v be coordinates of the circle
(GaussianProcess.to_circle). A network of two times predicts vbar, and its flow
map is X = cos(d) x - sin(d) vbar. For data N(m, w^2) and the variances
V_t = alpha_t^2 w^2 + sigma_t^2, the exact flow map is

  (1)  X(x_t) = alpha_s m + sqrt(V_s / V_t) (x_t - alpha_t m)

Every test here computes in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.diffusion.prediction import Prediction, from_prediction
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import (
  RectifiedFlow,
)
from tests.diffusion.given import ALL_SCHEDULES

every_schedule = pytest.mark.parametrize("name", ALL_SCHEDULES)
MEAN, WIDTH = 0.4, 0.3


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def difference(f, t, side):
  """df/dt by a backward (side = -1), central (0) or forward (1) difference."""
  h = 1e-6
  if side == 0:
    return (f(t + h) - f(t - h)) / (2 * h)
  return (
    side * (-3 * f(t) + 4 * f(t + side * h) - f(t + side * 2 * h)) / (2 * h)
  )


@every_schedule
@pytest.mark.parametrize(
  ("t", "side"),
  # The times are both ends, and others that are between the entries of the
  # tables of discrete schedules.
  [(0.00005, 1), (0.0302, 0), (0.4003, 0), (0.9906, 0), (1.0, -1)],
)
def test_rates_agree_with_finite_differences(name, t, side):
  schedule, t = ALL_SCHEDULES[name], jnp.full(1, t)
  functions = (schedule.alpha, schedule.sigma, schedule.angle)
  rates = (*schedule.rates(t), schedule.angle_rate(t))
  for function, rate in zip(functions, rates, strict=True):
    if name == "flow":
      # Differentiate the line alpha = 1 - t, which the schedule clips at both
      # ends.
      line = {schedule.alpha: lambda t: 1 - t, schedule.sigma: lambda t: t}
      line[schedule.angle] = lambda t: jnp.arctan2(t, 1 - t)
      expected = difference(line[function], t, side)
    else:
      expected = difference(function, t, side)
    np.testing.assert_allclose(rate, expected, rtol=2e-4, atol=1e-7)


@every_schedule
@pytest.mark.parametrize("t", [0.0, 1e-5, 0.0302, 0.4003, 0.9906, 1.0])
def test_jvps_of_the_schedule_equal_its_rates_also_at_both_ends(name, t):
  schedule, t = ALL_SCHEDULES[name], jnp.full(1, t)
  functions = (schedule.alpha, schedule.sigma, schedule.angle)
  rates = (*schedule.rates(t), schedule.angle_rate(t))
  for function, rate in zip(functions, rates, strict=True):
    _, tangent = jax.jvp(function, (t,), (jnp.ones(1),))
    np.testing.assert_allclose(tangent, rate, rtol=1e-6, atol=1e-12)


def flow_map(process, x_t, t, s):
  """The exact flow map of data N(MEAN, WIDTH^2): equation (1) of this file."""
  (alpha_t, sigma_t), (alpha_s, sigma_s) = (
    process.coefficients(time, x_t) for time in (t, s)
  )
  variance_t = (alpha_t * WIDTH) ** 2 + sigma_t**2
  variance_s = (alpha_s * WIDTH) ** 2 + sigma_s**2
  ratio = jnp.sqrt(variance_s / variance_t)
  return alpha_s * MEAN + ratio * (x_t - alpha_t * MEAN)


def denoised(process, x_t, t):
  """The exact denoiser's prediction for data N(MEAN, WIDTH^2)."""
  alpha, sigma = process.coefficients(t, x_t)
  variance = (alpha * WIDTH) ** 2 + sigma**2
  x0 = MEAN + alpha * WIDTH**2 / variance * (x_t - alpha * MEAN)
  return Prediction(x0=x0, eps=(x_t - alpha * x0) / sigma)


def predicted(process, x_t, t, s):
  """The two-time prediction whose DDIM step from t to s is flow_map.

  Solves alpha_t x0 + sigma_t eps = x_t and alpha_s x0 + sigma_s eps = X.
  """
  (alpha_t, sigma_t), (alpha_s, sigma_s) = (
    process.coefficients(time, x_t) for time in (t, s)
  )
  end = flow_map(process, x_t, t, s)
  determinant = alpha_t * sigma_s - sigma_t * alpha_s
  return Prediction(
    x0=(sigma_s * x_t - sigma_t * end) / determinant,
    eps=(alpha_t * end - alpha_s * x_t) / determinant,
  )


X = np.array([[0.3, -0.2], [1.0, 0.4], [-0.7, 0.1]]).reshape(3, 1, 1, 2)
# Times that lie between the entries of discrete schedules' tables.
T, S = np.array([0.3004, 0.7003, 0.9504]), np.array([0.1003, 0.3506, 0.5004])


@every_schedule
def test_a_ddim_step_with_the_exact_two_time_prediction_is_the_flow_map(name):
  process = GaussianProcess(schedule=ALL_SCHEDULES[name])
  x, t, s = (jnp.asarray(value) for value in (X, T, S))
  prediction = predicted(process, x, t, s)
  for step in (process.ddim, process.rotate):
    np.testing.assert_allclose(
      step(x, prediction, t, s), flow_map(process, x, t, s), atol=1e-12
    )


@every_schedule
def test_rotate_equals_ddim_except_at_time_0(name):
  process = GaussianProcess(schedule=ALL_SCHEDULES[name])
  x, t = jnp.asarray(X), jnp.asarray(T)
  prediction = denoised(process, x, t)
  s = jnp.asarray(S)
  np.testing.assert_array_equal(
    process.rotate(x, prediction, t, s), process.ddim(x, prediction, t, s)
  )
  np.testing.assert_array_equal(
    process.ddim(x, prediction, t, 0 * s), prediction.x0
  )
  # At time 0, rotate returns alpha(0) x0 + sigma(0) eps.
  alpha, sigma = process.coefficients(0 * s, x)
  np.testing.assert_allclose(
    process.rotate(x, prediction, t, 0 * s),
    alpha * prediction.x0 + sigma * prediction.eps,
    atol=1e-12,
  )
  _, tangent = jax.jvp(
    lambda s: process.rotate(x, prediction, t, s), (0 * s,), (1 + 0 * s,)
  )
  expected = process.velocity(prediction, x, 0 * s)
  np.testing.assert_allclose(tangent, expected, rtol=1e-9, atol=1e-9)


@every_schedule
def test_velocity_is_the_time_derivative_of_the_flow_map(name):
  process = GaussianProcess(schedule=ALL_SCHEDULES[name])
  x, t = jnp.asarray(X), jnp.asarray(T)
  h = 1e-6
  ahead, behind = (flow_map(process, x, t, t + step) for step in (h, -h))
  np.testing.assert_allclose(
    process.velocity(denoised(process, x, t), x, t),
    (ahead - behind) / (2 * h),
    rtol=1e-4,
    atol=1e-6,
  )


def test_velocity_of_rectified_flow_equals_the_output_velocity():
  process = GaussianProcess(schedule=RectifiedFlow())
  x, t = jnp.asarray(X), jnp.array([0.0, 0.5, 1.0])
  prediction = denoised(process, x, t)
  np.testing.assert_allclose(
    process.velocity(prediction, x, t),
    from_prediction("velocity", prediction, *process.coefficients(t, x)),
    rtol=1e-12,
  )


@every_schedule
def test_to_circle_gives_cos_of_the_angle_times_x0_plus_sin_times_eps(name):
  process = GaussianProcess(schedule=ALL_SCHEDULES[name])
  x0, eps, t = jnp.asarray(X), jnp.asarray(X[::-1]), jnp.asarray(T)
  x, angle = process.to_circle(process.diffuse(x0, eps, t), t)
  p = angle.reshape(-1, 1, 1, 1)
  np.testing.assert_allclose(x, jnp.cos(p) * x0 + jnp.sin(p) * eps, atol=1e-12)


@every_schedule
@pytest.mark.parametrize("sign", [1, -1])
def test_the_exact_flow_map_satisfies_the_eulerian_identity(name, sign):
  """The identity is cos(d) (v - vbar) - sin(d) (x + dvbar/dp_t) = 0."""
  process = GaussianProcess(schedule=ALL_SCHEDULES[name])
  schedule = process.schedule
  x_t, t, s = (jnp.asarray(value) for value in (X, T, S))

  def average(x_t, t):
    prediction = predicted(process, x_t, t, s)
    alpha, sigma = process.coefficients(t, x_t)
    length = jnp.hypot(alpha, sigma)
    return (alpha * prediction.eps - sigma * prediction.x0) / length

  prediction = denoised(process, x_t, t)
  tangent_t = 1 / schedule.angle_rate(t)
  tangent_x = process.velocity(prediction, x_t, t)
  tangent_x = tangent_x * tangent_t.reshape(-1, 1, 1, 1)
  vbar, rate = jax.jvp(average, (x_t, t), (tangent_x, tangent_t))
  x, _ = process.to_circle(x_t, t)
  alpha, sigma = process.coefficients(t, x_t)
  v = (alpha * prediction.eps - sigma * prediction.x0) / jnp.hypot(alpha, sigma)
  d = schedule.rotation(t, s).reshape(-1, 1, 1, 1)
  residual = jnp.cos(d) * (v - vbar) - sign * jnp.sin(d) * (x + rate)
  largest = float(jnp.abs(residual).max())
  if sign == 1:
    assert largest < 1e-9
  else:
    assert largest > 0.02
