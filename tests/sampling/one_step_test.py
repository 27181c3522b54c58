import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.diffusion.prediction import from_x0
from diffdistill.sampling.one_step import OneStep


@pytest.mark.parametrize("num_steps", [1, 8])
def test_it_is_the_x0_at_the_last_time(toys, num_steps):
  process, calls = toys("cosine").process, []

  def denoise(x_t, t):
    calls.append(t.shape)
    x0 = x_t * t[:, None, None, None]
    return from_x0(x0, x_t, *process.coefficients(t, x_t))

  x = jax.random.normal(jax.random.key(0), (4, 1, 1, 2))
  sampler = OneStep(process=process, clip=False)
  actual = sampler(denoise, x, jax.random.key(1), num_steps)
  # t = 1 to the bit, once.
  np.testing.assert_array_equal(actual, x)


def test_the_exact_denoiser_gives_the_mean_of_the_data(toys):
  toy = toys("cosine", "mixture")
  pi = np.exp(toy.logits) / np.exp(toy.logits).sum()
  x = jax.random.normal(jax.random.key(0), (4, 1, 1, 2))
  sampler = OneStep(process=toy.process)
  actual = sampler(toy.denoise, x, jax.random.key(1))
  # alpha(1) = 4.5e-5 lets that much of x through.
  np.testing.assert_allclose(
    actual[:, 0, 0], np.tile(pi @ toy.means, (4, 1)), atol=2e-4
  )


def test_it_clips(toys):
  process = toys("cosine").process

  def denoise(x_t, t):
    return from_x0(3 * x_t, x_t, *process.coefficients(t, x_t))

  x = jnp.array([-1.0, 0.2]).reshape(2, 1, 1, 1)
  actual = OneStep(process=process)(denoise, x, jax.random.key(0))
  np.testing.assert_allclose(actual.ravel(), [-1, 0.6], rtol=1e-6)
