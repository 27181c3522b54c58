import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.sampling.ancestral import Ancestral


def recursion(toy, num_steps, noise):
  """The exact mean and standard deviation of samples of a Gaussian, in float64.

  Every step is linear in x_t and adds Gaussian noise. The formulas of a step
  are Eqs. 4 and 5 of Salimans & Ho 2022, where x0 is the exact posterior mean.
  """
  m, v = toy.means[0, 0], toy.std[0] ** 2
  mean, variance = 0.0, toy.coefficients(1.0)[1] ** 2
  for i in range(num_steps, 0, -1):
    alpha, sigma = toy.coefficients(i / num_steps)
    gain = alpha * v / (alpha**2 * v + sigma**2)
    # The exact denoiser predicts x0 = offset + gain x_t.
    offset = m - gain * alpha * m
    if i == 1:
      return offset + gain * mean, np.sqrt(gain**2 * variance)
    alpha_s, sigma_s = toy.coefficients((i - 1) / num_steps)
    r = (alpha * sigma_s / (sigma * alpha_s)) ** 2
    small, large = (1 - r) * sigma_s**2, (1 - r) * sigma**2
    slope = r * alpha_s / alpha + (1 - r) * alpha_s * gain
    mean = slope * mean + (1 - r) * alpha_s * offset
    variance = slope**2 * variance + small ** (1 - noise) * large**noise


def samples(toy, noise, n, seed=0):
  """Returns a compiled function that draws n samples in a number of steps."""
  sampler = Ancestral(process=toy.process, clip=False, noise=noise)

  @jax.jit
  def sample(num_steps):
    key_x, key = jax.random.split(jax.random.key(seed))
    x = sampler.start(jax.random.normal(key_x, (n, 1, 1, 1)), num_steps)
    return sampler(toy.denoise, x, key, num_steps)

  return sample


@pytest.mark.parametrize("noise", [0.0, 0.4, 1.0])
def test_moments_of_samples_follow_the_exact_recursion(toys, noise):
  toy, n = toys("cosine"), 20_000
  sample = samples(toy, noise, n)
  for num_steps in (2, 8):
    x = np.asarray(sample(num_steps), np.float64)
    mean, std = recursion(toy, num_steps, noise)
    # The tolerances are four standard errors of a mean and of a deviation.
    assert x.mean() == pytest.approx(mean, abs=4 * std / n**0.5)
    assert x.std() == pytest.approx(std, abs=4 * std / (2 * n) ** 0.5)


@pytest.mark.parametrize("name", ["edm", "flow", "linear"])
def test_moments_of_samples_are_exact_on_other_schedules(toys, name):
  toy, n = toys(name), 20_000
  x = np.asarray(samples(toy, 0.0, n)(8), np.float64)
  mean, std = recursion(toy, 8, 0.0)
  assert x.mean() == pytest.approx(mean, abs=4 * std / n**0.5)
  assert x.std() == pytest.approx(std, abs=4 * std / (2 * n) ** 0.5)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_samples_of_many_steps_have_the_moments_of_the_data(toys, noise):
  toy, n = toys("cosine"), 10_000
  sample = samples(toy, noise, n)
  mean, std = toy.means[0, 0], toy.std[0]
  error = [abs(np.std(sample(k)) - std) for k in (8, 128)]
  # The error falls as 1 / steps, by a factor of 16 from 8 to 128 steps.
  assert error[1] < error[0] / 5
  assert error[1] < 0.015
  assert np.mean(sample(128)) == pytest.approx(mean, abs=4 * std / n**0.5)


def test_a_step_draws_samples_from_the_posterior(toys):
  toy, n = toys("cosine"), 20_000
  t, s = jnp.full(n, 0.7), jnp.full(n, 0.5)
  x_t = jnp.full((n, 1, 1, 1), 0.9)
  sampler = Ancestral(process=toy.process, clip=False, noise=0.3)

  @jax.jit
  def both(key):
    x0 = toy.denoise(x_t, t).x0
    moments = toy.process.posterior(x_t, x0, t, s, 0.3)
    x_s, _ = sampler.step(toy.denoise, x_t, (), t, s, key, jnp.int32(4))
    return x_s, moments

  x_s, moments = both(jax.random.key(0))
  mean, std = (float(v[0, 0, 0, 0]) for v in moments)
  assert float(x_s.mean()) == pytest.approx(mean, abs=4 * std / n**0.5)
  assert float(x_s.std()) == pytest.approx(std, rel=4 / (2 * n) ** 0.5)


@pytest.mark.parametrize("noise", [-0.1, 1.5])
def test_noise_outside_0_to_1_is_refused(toys, noise):
  with pytest.raises(ValueError, match=f"noise is {noise}; pass a value in"):
    Ancestral(process=toys("cosine").process, noise=noise)
