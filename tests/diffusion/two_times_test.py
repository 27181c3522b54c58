"""Tests of flow maps, schedules' derivatives and two-time predictions.

Let p = angle(t) and d = p_t - p_s, and let x and v be coordinates of the circle
(GaussianProcess.to_circle). A network of two times predicts vbar, and its flow
map is X = cos(d) x - sin(d) vbar. For data N(m, w^2) and the variances
V_t = alpha_t^2 w^2 + sigma_t^2, the exact flow map is

  (1)  X(x_t) = alpha_s m + sqrt(V_s / V_t) (x_t - alpha_t m)

Every test here computes in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.diffusion.flow_maps import (
  circle_velocity,
  eulerian,
  lagrangian,
  semigroup,
)
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


def sizes_of(process):
  """The size of each identity's error for the exact flow map."""
  x_t, t, s = (jnp.asarray(value) for value in (X, T, S))
  model, middle = functools.partial(predicted, process), 0.6 * t + 0.4 * s

  @jax.jit
  def errors():
    flow = denoised(process, x_t, t)
    x_s, slope = lagrangian(process, model, x_t, t, s)
    end = circle_velocity(process, denoised(process, x_s, s), s)
    jump = semigroup(process, model, x_t, t, middle, s)
    return {
      "eulerian": eulerian(process, model, flow, x_t, t, s),
      "flipped": eulerian(process, model, flow, x_t, t, s, share=-1.0),
      "lagrangian": slope - end,
      "end": x_s - flow_map(process, x_t, t, s),
      "semigroup": jump - circle_velocity(process, model(x_t, t, s), t),
    }

  return {which: np.abs(side).max() for which, side in errors().items()}


@every_schedule
def test_the_exact_flow_map_satisfies_the_three_identities(name):
  sizes = sizes_of(GaussianProcess(schedule=ALL_SCHEDULES[name]))
  # With the other sign of its second term, the Eulerian identity is false.
  assert sizes.pop("flipped") > 0.02
  assert max(sizes.values()) < 1e-12, sizes


def test_each_identity_is_false_if_one_of_its_terms_is_changed(monkeypatch):
  process = GaussianProcess(schedule=ALL_SCHEDULES["cosine"])
  jvp = jax.jvp

  def flipped(*arguments):
    value, rate = jvp(*arguments)
    return value, -rate

  for place, name, wrong, touched in (
    # Leave x out of the second term.
    (
      GaussianProcess,
      "to_circle",
      lambda _, x, t: (0 * x, t),
      ("eulerian", "lagrangian", "semigroup"),
    ),
    # Do not move x by the first jump.
    (GaussianProcess, "rotate", lambda _, x, *rest: x, ("semigroup",)),
    # Flip the sign of the derivative.
    (jax, "jvp", flipped, ("eulerian", "lagrangian")),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(place, name, wrong)
      sizes = sizes_of(process)
    assert min(sizes[which] for which in touched) > 0.02, (name, sizes)


@pytest.mark.parametrize("name", ["cosine", "edm"])
def test_at_equal_times_every_identity_compares_u_with_the_flow(name):
  process = GaussianProcess(schedule=ALL_SCHEDULES[name])
  x_t, t = jnp.asarray(X), jnp.asarray(T)
  given, other = denoised(process, x_t, t), Prediction(x0=x_t, eps=-x_t)

  def model(x_t, t, s):
    return other

  v, u = (circle_velocity(process, p, t) for p in (given, other))
  side = eulerian(process, model, given, x_t, t, t)
  np.testing.assert_allclose(side, v - u, atol=1e-14)
  x_s, slope = lagrangian(process, model, x_t, t, t)
  np.testing.assert_allclose(x_s, x_t, atol=1e-14)
  np.testing.assert_allclose(slope, u, atol=1e-14)
  np.testing.assert_allclose(
    semigroup(process, model, x_t, t, t, t), u, atol=1e-14
  )


def test_the_average_velocity_of_meanflow_is_ours_with_output_velocity():
  process = GaussianProcess(schedule=RectifiedFlow())
  x_t, t, s = (jnp.asarray(value) for value in (X, T, S))

  def average(x_t, t):
    """MeanFlow's u: the mean of the velocity over the path from s to t."""
    gap = (t - s).reshape(-1, 1, 1, 1)
    return (x_t - flow_map(process, x_t, t, s)) / gap

  def ours(x_t, t):
    prediction = predicted(process, x_t, t, s)
    coefficients = process.coefficients(t, x_t)
    return from_prediction("velocity", prediction, *coefficients)

  v = process.velocity(denoised(process, x_t, t), x_t, t)
  gap, one = (t - s).reshape(-1, 1, 1, 1), jnp.ones_like(t)
  u, rate = jax.jvp(ours, (x_t, t), (v, one))
  np.testing.assert_allclose(u, average(x_t, t), atol=1e-12)
  # MeanFlow's identity holds for u: Geng et al. 2025, Eq. 6.
  np.testing.assert_allclose(u, v - gap * rate, atol=1e-12)
  assert jnp.abs(u - (v + gap * rate)).max() > 0.02
