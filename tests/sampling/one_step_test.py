import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.diffusion.prediction import from_x0, to_prediction
from diffdistill.sampling.one_step import OneStep


@pytest.mark.parametrize("num_steps", [1, 8])
def test_one_step_calls_the_model_at_exactly_t_1_and_returns_x0(
  toys, num_steps
):
  process, calls = toys("cosine").process, []

  def denoise(x_t, t, s=None):
    calls.append(t.shape)
    x0 = x_t * t[:, None, None, None]
    return from_x0(x0, x_t, *process.coefficients(t, x_t))

  x = jax.random.normal(jax.random.key(0), (4, 1, 1, 2))
  sampler = OneStep(process=process, clip=False)
  actual = sampler(denoise, x, jax.random.key(1), num_steps)
  # The model returns x * t, which equals x only if t is exactly 1.
  np.testing.assert_array_equal(actual, x)


@pytest.mark.parametrize("clip", [False, True])
def test_form_difference_returns_the_input_minus_predicted_noise(toys, clip):
  """The image is x_T - net(x_T, T), clipped to [-1, 1] if clip is set."""
  process = toys("linear").process

  def denoise(x_t, t, s=None):
    eps = jnp.sin(x_t) * t[:, None, None, None]
    return to_prediction("eps", eps, x_t, *process.coefficients(t, x_t))

  x = 3 * jax.random.normal(jax.random.key(0), (4, 1, 1, 2))
  sampler = OneStep(process=process, clip=clip, form="difference")
  actual = sampler(denoise, x, jax.random.key(1))
  expected = x - jnp.sin(x)
  assert float(jnp.abs(expected).max()) > 1
  if clip:
    expected = jnp.clip(expected, -1, 1)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_the_two_forms_differ_by_a_factor_1_over_alpha(toys):
  process = toys("linear").process

  def denoise(x_t, t, s=None):
    alpha, sigma = process.coefficients(t, x_t)
    return to_prediction("eps", 0.99 * x_t, x_t, alpha, sigma)

  x = jnp.full((1, 1, 1, 1), 0.5)
  x0, difference = (
    OneStep(process=process, clip=False, form=form)(
      denoise, x, jax.random.key(0)
    )
    for form in ("x0", "difference")
  )
  # The expected ratio is 1 / alpha(1), because sigma(1) is nearly 1.
  ratio = float(x0[0, 0, 0, 0] / difference[0, 0, 0, 0])
  assert ratio == pytest.approx(157.4, rel=3e-3)


def test_an_unknown_form_is_refused(toys):
  with pytest.raises(ValueError, match="form is 'eps'; pass one of x0, differ"):
    OneStep(process=toys("cosine").process, form="eps")


def test_one_step_with_the_exact_denoiser_gives_the_mean_of_the_data(toys):
  toy = toys("cosine", "mixture")
  pi = np.exp(toy.logits) / np.exp(toy.logits).sum()
  x = jax.random.normal(jax.random.key(0), (4, 1, 1, 2))
  sampler = OneStep(process=toy.process)
  actual = sampler(toy.denoise, x, jax.random.key(1))
  # The tolerance allows for alpha(1), which is 4.5e-5 and not 0, so that x
  # changes the output a little.
  np.testing.assert_allclose(
    actual[:, 0, 0], np.tile(pi @ toy.means, (4, 1)), atol=2e-4
  )


def test_one_step_clips_the_image(toys):
  process = toys("cosine").process

  def denoise(x_t, t, s=None):
    return from_x0(3 * x_t, x_t, *process.coefficients(t, x_t))

  x = jnp.array([-1.0, 0.2]).reshape(2, 1, 1, 1)
  actual = OneStep(process=process)(denoise, x, jax.random.key(0))
  np.testing.assert_allclose(actual.ravel(), [-1, 0.6], rtol=1e-6)
