"""Tests that the gradient and the moment gap agree with their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.diffusion.schedule import Cosine
from diffdistill.networks.analytic import GaussianMixture
from diffdistill.networks.mlp import MLP
from diffdistill.networks.network import LinenNetwork
from diffdistill.objectives.moment_draws import (
  Draw,
  draw,
)
from diffdistill.objectives.moment_matching import (
  MomentMatching,
  ParameterMomentMatching,
  moment_loss,
  moments,
  precondition,
)
from tests.objectives.given import (
  MIXTURE,
  batch_of,
)
from tests.objectives.moment_given import (
  Blend,
  blend,
  gaussian,
  images,
  mean_of,
  moment_loss_of,
  objective,
  student_gradient,
)


def test_surrogate_is_the_finite_difference_of_half_m_lambda_m():
  """The test uses float64, and the same draws for both half batches."""
  with jax.enable_x64(True):
    module = MLP(width=4, depth=1, out_channels=2)
    network = LinenNetwork(module=module, image_shape=(1, 1, 2))
    random = np.random.default_rng(0)
    # Draw all weights at random, because the last layer of a new network is
    # zero.
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    params, second = (
      jax.tree.map(lambda leaf, d=d: jnp.asarray(d(size=leaf.shape)), shapes)
      for d in (random.normal, random.exponential)
    )
    x0, x_s = (jnp.asarray(random.normal(size=(4, 1, 1, 2))) for _ in range(2))
    s, w = (jnp.asarray(random.uniform(size=4)) for _ in range(2))

    def half_m_lambda_m(x0):
      m = moments(network.apply, params, Draw(x0=x0, x_s=x_s, s=s, w=w))
      products = jax.tree.map(
        lambda m, lm: jnp.sum(m * lm), m, precondition(m, second)
      )
      return 0.5 * jax.tree.reduce(jnp.add, products)

    def surrogate(x0):
      drawn = Draw(x0=x0, x_s=x_s, s=s, w=w)
      direction = precondition(moments(network.apply, params, drawn), second)
      losses, gaps = moment_loss(network.apply, params, direction, drawn)
      return jnp.mean(losses), jnp.mean(gaps)

    gradient, gap = jax.jit(jax.grad(surrogate, has_aux=True))(x0)
    assert gradient.dtype == jnp.float64

    def difference(i):
      step = jnp.zeros(x0.size).at[i].set(1e-5).reshape(x0.shape)
      high, low = half_m_lambda_m(x0 + step), half_m_lambda_m(x0 - step)
      return (high - low) / 2e-5

    expected = jax.jit(jax.vmap(difference))(jnp.arange(x0.size))
    # 1/2 m^T Lambda m is quadratic in x0. So its central finite difference is
    # exact up to rounding.
    np.testing.assert_allclose(gradient.ravel(), expected, rtol=1e-6)
    # Both halves are the same batch, so the gap must equal m^T Lambda m.
    half = float(jax.jit(half_m_lambda_m)(x0))
    assert float(gap) == pytest.approx(2 * half)


def test_lambda_is_one_over_the_root_of_the_second_moments():
  m, v = {"a": jnp.array([3.0, 1e-9])}, {"a": jnp.array([4.0, 0.0])}
  np.testing.assert_allclose(precondition(m, v)["a"], [1.5, 0.1], rtol=1e-6)
  assert precondition(m, None) is m
  exact = GaussianMixture(schedule=Cosine())
  goals = {
    name: objective(ParameterMomentMatching, exact, preconditioner=name)
    for name in ("adam", "identity")
  }
  assert goals["identity"].needs == {"teacher": "denoiser"}
  assert goals["adam"].needs == {
    "teacher": "denoiser",
    "second_moments": "moments",
  }
  student = MIXTURE | {"std": jnp.array([0.5, 0.4])}
  v = jax.tree.map(lambda p: jnp.full(p.shape, 4.0), MIXTURE)
  x0, key = images(64), jax.random.key(0)

  @jax.jit
  def losses(x0, key):
    args = ("student", (student, None, MIXTURE), x0, key)
    return (
      moment_loss_of(goals["adam"], *args, second_moments=v)[0],
      moment_loss_of(goals["identity"], *args)[0],
    )

  adam, identity = losses(x0, key)
  assert float(adam / identity) == pytest.approx(0.5, rel=1e-5)


WRONG = 0.3


def one_step_student():
  """The student x0 = 2 + WRONG x_1, narrower than the data N(2, 0.5^2)."""
  return blend(WRONG, 2.0)


def test_a_narrow_one_step_student_has_the_gap_of_the_formula():
  """With the best auxiliary, a formula gives the mean of the metric.

  x_1 is almost pure noise, so x_s = alpha x0 + sigma eps. So E[x0 | x_s] is the
  exact denoiser of the narrower normal distribution.
  """
  schedule = Cosine(logsnr_max=8.0)
  network = Blend(GaussianMixture(schedule=schedule))
  goal = objective(
    MomentMatching, network, schedule, times="grid", weighting="snr"
  )
  teacher = blend(0.0, 0.0, (1.0, gaussian(0.5)))
  auxiliary = blend(0.0, 0.0, (0.5, gaussian(0.5)), (0.5, gaussian(WRONG)))
  n = 2**18
  _, metrics = jax.jit(
    lambda x0, key: moment_loss_of(
      goal,
      "student",
      (one_step_student(), auxiliary, teacher),
      x0,
      key,
      num_steps=1,
    )
  )(images(n, data=gaussian(0.5)), jax.random.key(1))
  assert float(metrics["student/moment_gap"][1]) == n
  s = (jnp.arange(10_000) + 0.5) / 10_000
  alpha, sigma = schedule.alpha(s), schedule.sigma(s)

  def var(std):
    return alpha**2 * std**2 + sigma**2

  gains = alpha * WRONG**2 / var(WRONG) - alpha * 0.5**2 / var(0.5)
  expected = jnp.mean((alpha / sigma) ** 2 * gains**2 * var(WRONG))
  # The standard error of the measured gap is 0.5 %.
  actual = mean_of(metrics["student/moment_gap"])
  assert actual == pytest.approx(float(expected), rel=0.02)


def test_the_gap_in_parameter_space_is_the_square_of_the_mean_moments():
  """The estimate m^T m' of two independent halves has no bias."""
  network = Blend(GaussianMixture(schedule=Cosine()))
  goal = objective(
    ParameterMomentMatching, network, times="grid", weighting="clipped_snr"
  )
  trees = one_step_student(), None, blend(0.0, 0.0, (1.0, gaussian(0.5)))

  @jax.jit
  def both(key):
    key_gaps, key_moments = jax.random.split(key)

    def gap(key):
      x0 = images(256, data=gaussian(0.5))
      _, metrics = moment_loss_of(goal, "student", trees, x0, key, num_steps=1)
      return metrics["student/moment_gap"][0] / 128

    drawn = draw(
      goal.denoiser,
      trees[0],
      batch_of(images(2**19, data=gaussian(0.5))),
      "grid",
      "clipped_snr",
      1,
      key_moments,
      False,
    )

    def teacher(params, x_s, s):
      return goal.denoiser(params, x_s, s).x0

    m = moments(teacher, trees[2], drawn)
    gaps = jax.vmap(gap)(jax.random.split(key_gaps, 2048))
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(m)), jnp.mean(gaps)

  square, gap = map(float, both(jax.random.key(0)))
  # The tolerance is for the noise of both values, which are known to 4 %. If
  # one half were used twice, the noise of m would more than double the gap.
  assert gap == pytest.approx(square, rel=0.2)


def test_a_one_step_student_as_wide_as_the_data_has_no_gradient():
  """Beside this fixed point, the gradient must have the right sign."""
  network = Blend(GaussianMixture(schedule=Cosine()))
  goal = objective(
    ParameterMomentMatching, network, times="grid", weighting="clipped_snr"
  )
  teacher = blend(0.0, 0.0, (1.0, gaussian(0.5)))

  @jax.jit
  def slopes(slope):
    def one(key):
      x0 = images(256, data=gaussian(0.5))
      trees = blend(slope, 2.0), None, teacher
      return student_gradient(goal, trees, x0, key, num_steps=1)[1]["slope"]

    return jax.vmap(one)(jax.random.split(jax.random.key(0), 256))

  def score(slope):
    """Returns the mean gradient, divided by its standard error."""
    values = np.asarray(slopes(slope))
    return values.mean() / (values.std() / 16)

  assert score(0.3) < -6
  assert score(0.8) > 6
  assert abs(score(0.5)) < 4
