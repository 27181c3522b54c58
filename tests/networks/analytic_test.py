import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.arrays import Condition
from diffdistill.diffusion.schedule import Cosine
from diffdistill.networks.analytic import GaussianMixture

SCHEDULE = Cosine()
MIXTURE = GaussianMixture(schedule=SCHEDULE)
apply = jax.jit(MIXTURE.apply)


def mixture(std=(0.3, 0.1, 0.6)):
  return {
    "means": jnp.array([[-0.8, 0.1], [0.2, 0.7], [0.6, -0.5]]).reshape(
      3, 1, 1, 2
    ),
    "std": jnp.asarray(std),
    "logits": jnp.array([0.3, -1.0, 0.5]),
  }


def brute_force(params, x, t):
  """E[x0 | x_t = x] by Bayes' rule on a fine grid of x0, in float64."""
  alpha, sigma = (
    float(f(jnp.float32(t))) for f in (SCHEDULE.alpha, SCHEDULE.sigma)
  )
  axis = np.linspace(-4, 4, 401)
  x0 = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
  means = np.asarray(params["means"], np.float64).reshape(-1, 2)
  std = np.asarray(params["std"], np.float64)
  pi = np.exp(np.asarray(params["logits"], np.float64))
  prior = sum(
    p * np.exp(-((x0 - m) ** 2).sum(-1) / (2 * s**2)) / s**2
    for p, m, s in zip(pi, means, std, strict=True)
  )
  exponent = -((x - alpha * x0) ** 2).sum(-1) / (2 * sigma**2)
  posterior = prior * np.exp(exponent - exponent.max())
  return (posterior[:, None] * x0).sum(0) / posterior.sum()


@pytest.mark.parametrize("t", [0.1, 0.3, 0.6, 0.9, 1.0])
def test_output_agrees_with_bayes_rule_on_a_grid(t):
  points = np.array([[0.0, 0.0], [0.7, -0.4], [-1.5, 1.0]])
  expected = [brute_force(mixture(), x, t) for x in points]
  actual = apply(
    mixture(),
    jnp.asarray(points, jnp.float32).reshape(3, 1, 1, 2),
    jnp.full(3, t),
  )
  np.testing.assert_allclose(actual[:, 0, 0], expected, atol=2e-5)


def test_output_at_t_1_is_the_mean_of_the_data():
  x = 3 * jax.random.normal(jax.random.key(0), (5, 1, 1, 2))
  params = mixture()
  pi = jax.nn.softmax(params["logits"])
  mean = jnp.einsum("k,khwc->hwc", pi, params["means"])
  actual = apply(params, x, jnp.ones(5))
  # The tolerance allows for alpha(1), which is 4.5e-5 and not 0, so that x
  # changes the output a little.
  np.testing.assert_allclose(actual, np.broadcast_to(mean, x.shape), atol=5e-4)


def test_output_at_t_0_is_the_input_image():
  params = mixture()
  x = MIXTURE.sample(params, jax.random.key(0), 64)
  np.testing.assert_allclose(apply(params, x, jnp.zeros(64)), x, atol=1e-5)


def test_output_at_t_0_is_the_nearest_point_mass_if_std_is_0():
  params = mixture(std=(0.0, 0.0, 0.0))
  x = params["means"] + 0.05
  np.testing.assert_allclose(
    apply(params, x, jnp.zeros(3)), params["means"], atol=1e-6
  )


@pytest.mark.parametrize("std", [0.0, 0.3])
def test_output_and_gradients_are_finite_far_away_and_at_both_ends(std):
  params = mixture(std=(std,) * 3)
  x = jnp.tile(jnp.array([-50.0, 0.0, 50.0]).reshape(3, 1, 1, 1), (2, 1, 1, 2))
  t = jnp.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])

  def total(params, x):
    return jnp.sum(apply(params, x, t))

  value_and_grad = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
  value, grads = value_and_grad(params, x)
  assert jnp.isfinite(value)
  assert all(jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads))


def test_output_is_the_least_squares_denoiser_of_the_samples():
  params, n, t = mixture(), 20_000, 0.5
  x0 = MIXTURE.sample(params, jax.random.key(0), n)
  eps = jax.random.normal(jax.random.key(1), x0.shape)
  time = jnp.full(n, t)
  x_t = SCHEDULE.alpha(t * jnp.ones(())) * x0
  x_t = x_t + SCHEDULE.sigma(t * jnp.ones(())) * eps
  error = x0 - apply(params, x_t, time)
  # The output is E[x0 | x_t] if its error is orthogonal to every function of
  # x_t. The tolerance of 0.02 is four standard errors of these means.
  for probe in (jnp.ones_like(x_t), x_t, jnp.sin(3 * x_t)):
    assert abs(float(jnp.mean(error * probe))) < 0.02


def test_samples_have_the_moments_of_the_mixture():
  params = mixture()
  x0 = MIXTURE.sample(params, jax.random.key(3), 20_000)
  assert x0.shape == (20_000, 1, 1, 2)
  pi = np.asarray(jax.nn.softmax(params["logits"]))
  means = np.asarray(params["means"]).reshape(3, 2)
  mean = pi @ means
  second = pi @ (means**2 + np.asarray(params["std"])[:, None] ** 2)
  # The tolerance is four standard errors of 20,000 samples of variance 1.
  np.testing.assert_allclose(x0.mean(0)[0, 0], mean, atol=0.03)
  np.testing.assert_allclose((x0**2).mean(0)[0, 0], second, atol=0.03)


def test_init_draws_parameters_of_the_configured_shape():
  net = GaussianMixture(
    schedule=SCHEDULE, image_shape=(2, 3, 1), num_components=5, std=0.2
  )
  params = net.init(jax.random.key(0))
  assert params["means"].shape == (5, 2, 3, 1)
  np.testing.assert_allclose(params["std"], jnp.full(5, 0.2))
  assert jnp.std(params["means"]) > 0.1
  output = net.apply(params, jnp.ones((4, 2, 3, 1)), jnp.full(4, 0.5))
  assert output.shape == (4, 2, 3, 1)


def test_conditions_target_times_and_invalid_fields_are_refused():
  params, x, t = mixture(), jnp.ones((2, 1, 1, 2)), jnp.ones(2)
  with pytest.raises(ValueError, match="takes neither condition"):
    MIXTURE.apply(params, x, t, Condition(label=jnp.zeros(2, jnp.int32)))
  with pytest.raises(ValueError, match="takes neither condition"):
    MIXTURE.apply(params, x, t, s=t)
  with pytest.raises(ValueError, match="num_components is 0"):
    GaussianMixture(schedule=SCHEDULE, num_components=0)
  with pytest.raises(ValueError, match=r"std is -1\.0"):
    GaussianMixture(schedule=SCHEDULE, std=-1.0)
