"""Tests that the progressive target agrees with float64 formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.precondition import Identity
from diffdistill.diffusion.prediction import from_x0
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import Cosine
from diffdistill.networks.analytic import GaussianMixture
from diffdistill.objectives.progressive import second_weight, two_step_target
from tests.diffusion.given import SCHEDULES
from tests.objectives.given import MIXTURE

every_schedule = pytest.mark.parametrize("name", SCHEDULES)
DIM = 64


def cosine(t):
  """Computes the angle of the cosine schedule at time t, in float64."""
  start = np.arctan(np.exp(-10.0))
  return start + (np.pi / 2 - 2 * start) * np.asarray(t, np.float64)


def grid(num_steps):
  """Computes the times (t, mid, s) of each step of the student."""
  i = np.arange(1, num_steps + 1)
  return tuple((2 * i - k) / (2 * num_steps) for k in range(3))


def draws(num_steps):
  """Draws random float32 (x_t, first prediction, second) for each step."""
  rng = np.random.default_rng(num_steps)
  return rng.normal(size=(3, num_steps, DIM)).astype(np.float32)


def textbook(x_t, x1, x2, angles, dtype=np.float64):
  """Computes (target, x_s) by the paper's Algorithm 2, in a given precision.

  The algorithm is from Salimans & Ho 2022. The target is (x_s -
  (sigma_s/sigma_t) x_t) / (alpha_s - (sigma_s/sigma_t) alpha_t).
  """
  a = [np.cos(angle).astype(dtype)[:, None] for angle in angles]
  b = [np.sin(angle).astype(dtype)[:, None] for angle in angles]
  x_t, x1, x2 = (x.astype(dtype) for x in (x_t, x1, x2))
  x_mid = a[1] * x1 + b[1] / b[0] * (x_t - a[0] * x1)
  x_s = a[2] * x2 + b[2] / b[1] * (x_mid - a[1] * x2)
  ratio = b[2] / b[0]
  return (x_s - ratio * x_t) / (a[2] - ratio * a[0]), x_s


def weights(angles):
  """Computes the weights of the convex combination, by two formulas."""
  t, mid, s = angles
  w1 = np.sin(s) / np.sin(mid) * np.sin(t - mid) / np.sin(t - s)
  w2 = np.sin(mid - s) / np.sin(mid) / (np.sin(t - s) / np.sin(t))
  return w1, w2


@pytest.mark.parametrize("num_steps", [1, 2, 4, 64, 1024, 4096])
def test_three_formulas_of_the_target_agree_in_float64(num_steps):
  x_t, x1, x2 = draws(num_steps).astype(np.float64)
  angles = [cosine(t) for t in grid(num_steps)]
  quotient, x_s = textbook(x_t, x1, x2, angles)
  w1, w2 = weights(angles)
  np.testing.assert_allclose(w1 + w2, 1, atol=1e-11)
  convex = w1[:, None] * x1 + w2[:, None] * x2
  d, t = (angles[0] - angles[2])[:, None], angles[0][:, None]
  v = (np.cos(d) * x_t - x_s) / np.sin(d)
  from_v = np.cos(t) * x_t - np.sin(t) * v
  np.testing.assert_allclose(quotient, convex, atol=1e-11)
  np.testing.assert_allclose(from_v, convex, atol=1e-11)


def ours(num_steps, draws):
  """Calls two_step_target with a teacher that predicts x1 first and then x2."""
  process = GaussianProcess(schedule=Cosine())

  @jax.jit
  def target(x_t, x1, x2, t, mid, s):
    answers = iter((x1, x2))

    def denoise(x, t, s=None):
      return from_x0(next(answers), x, *process.coefficients(t, x))

    return two_step_target(process, denoise, x_t, t, mid, s)

  images = (x.reshape(-1, 1, 1, DIM) for x in draws)
  times = (t.astype(np.float32) for t in grid(num_steps))
  return target(*images, *times).reshape(-1, DIM)


@pytest.mark.parametrize(
  ("num_steps", "textbook_error"), [(64, 2e-5), (1024, 3.9e-4), (4096, 1.5e-3)]
)
def test_in_float32_the_target_is_more_exact_than_the_paper_s_formula(
  num_steps, textbook_error
):
  """The paper's quotient loses digits in float32; our formula does not."""
  data = draws(num_steps)
  angles = [cosine(t) for t in grid(num_steps)]
  expected, _ = textbook(*data, angles)
  expected[0] = data[2][0]  # At s = 0, the last prediction.
  bad, _ = textbook(*data, angles, np.float32)
  # The target of the first row (s = 0) is defined in another way, so it may
  # differ. The other rows may differ only by rounding.
  bad_error = np.abs(bad - expected)[1:].max()
  assert textbook_error / 4 < bad_error < 4 * textbook_error
  # The tolerance is 3 units in the last place of x1 + w (x2 - x1), which is at
  # most 4.
  np.testing.assert_allclose(ours(num_steps, data), expected, atol=1.5e-6)


@pytest.mark.parametrize(
  ("num_steps", "inverted"),
  [(1, 0.99995), (4, 0.9999), (64, 0.998), (1024, 0.972), (4096, 0.904)],
)
def test_the_target_at_s_0_is_the_second_prediction(num_steps, inverted):
  """At s = 0 the weight is 1, because the sampler's last step returns x0.

  An exact inversion of the step would give a weight below 1 if the schedule's
  largest SNR is finite.
  """
  times = [t[:1] for t in grid(num_steps)]
  _, w2 = weights([cosine(t) for t in times])
  # The tolerance is half a unit in the last digit of the expected number.
  assert w2[0] == pytest.approx(inverted, abs=6e-4 if num_steps > 9 else 2e-5)
  times = [jnp.asarray(t, jnp.float32) for t in times]
  for schedule in SCHEDULES.values():
    w = second_weight(GaussianProcess(schedule=schedule), *times)
    assert float(w[0]) == 1.0


@every_schedule
def test_the_weight_of_the_second_prediction_is_in_0_to_1(name):
  process = GaussianProcess(schedule=SCHEDULES[name])
  for num_steps in (1, 4, 256):
    times = (
      np.pad(t, (0, 256 - num_steps), mode="edge") for t in grid(num_steps)
    )
    w = second_weight(process, *(jnp.asarray(t, jnp.float32) for t in times))
    w = np.asarray(w)
    assert w.min() > 0
    assert w.max() <= 1
    if num_steps == 256:
      assert w[-1] < 0.6  # Far from t = 0, both weights are nearly equal.


@every_schedule
def test_one_ddim_step_to_the_target_equals_two_steps_of_the_teacher(name):
  """The teacher is the exact denoiser of a mixture."""
  schedule = SCHEDULES[name]
  process = GaussianProcess(schedule=schedule)
  denoise = Denoiser(
    network=GaussianMixture(schedule=schedule),
    process=process,
    precondition=Identity(noise="time"),
  ).bind(MIXTURE)

  @jax.jit
  def two_and_one(x0, eps, t, mid, s):
    x_t = process.diffuse(x0, eps, t)
    x_mid = process.ddim(x_t, denoise(x_t, t), t, mid)
    x_s = process.ddim(x_mid, denoise(x_mid, mid), mid, s)
    target = two_step_target(process, denoise, x_t, t, mid, s)
    student = from_x0(target, x_t, *process.coefficients(t, x_t))
    return x_s, process.ddim(x_t, student, t, s), process.coefficients(s, x_t)

  x0, eps = np.random.default_rng(0).normal(size=(2, 64, 1, 1, 2))
  x0, eps = x0.astype(np.float32), eps.astype(np.float32)
  for num_steps in (1, 4, 64, 1024):
    # Test 64 of the steps, among them the first and the last step.
    rows = np.linspace(0, num_steps - 1, 64).round().astype(int)
    times = (u[rows].astype(np.float32) for u in grid(num_steps))
    two, one, (_, sigma) = two_and_one(x0, eps, *times)
    # EDM's schedule has sigmas far above 1, so divide the errors by sigma where
    # it is above 1.
    scale = np.maximum(1, np.asarray(sigma))
    np.testing.assert_allclose(one / scale, two / scale, atol=1e-5)


@every_schedule
def test_the_target_of_a_point_mass_is_the_point_to_the_bit(name):
  schedule = SCHEDULES[name]
  process = GaussianProcess(schedule=schedule)
  point = jnp.array([0.37, -0.81]).reshape(1, 1, 1, 2)
  denoise = Denoiser(
    network=GaussianMixture(schedule=schedule),
    process=process,
    precondition=Identity(noise="time"),
  ).bind({"means": point, "std": jnp.zeros(1), "logits": jnp.zeros(1)})
  target = jax.jit(
    lambda x, t, mid, s: two_step_target(process, denoise, x, t, mid, s)
  )
  x_t = np.random.default_rng(0).normal(size=(4096, 1, 1, 2))
  for num_steps in (1, 3, 64, 1024, 4096):
    times = (np.resize(t, 4096).astype(np.float32) for t in grid(num_steps))
    actual = target(x_t.astype(np.float32), *times)
    np.testing.assert_array_equal(actual, np.resize(point, actual.shape))
