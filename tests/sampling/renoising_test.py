import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.diffusion.prediction import from_x0
from diffdistill.sampling.renoising import Renoising


def taus(sampler, num_steps):
  """The noise levels of the steps, from the first on."""
  schedule = sampler.process.schedule
  times = [sampler.time(i, num_steps) for i in range(num_steps, 0, -1)]
  return np.exp(-0.5 * np.asarray(schedule.logsnr(jnp.stack(times))))


def test_each_step_adds_new_noise_of_the_next_level_to_the_prediction(toys):
  """With a denoiser that predicts 0.3, x_s is 0.3 alpha and noise of sigma."""
  toy, n = toys("cosine"), 20_000
  sampler = Renoising(process=toy.process, clip=False)

  def model(x_t, t, s=None):
    assert s is not None
    x0 = jnp.full_like(x_t, 0.3) + s.reshape(-1, 1, 1, 1)
    return from_x0(x0, x_t, *toy.process.coefficients(t, x_t))

  x = jax.random.normal(jax.random.key(0), (n, 1, 1, 1))
  states = [sampler(model, x, jax.random.key(1), 3, stop) for stop in (1, 2, 3)]
  for state, t in zip(states[:2], (2 / 3, 1 / 3), strict=True):
    alpha, sigma = toy.coefficients(t)
    # The tolerances are four standard errors.
    mean, std = float(state.mean()), float(state.std())
    assert mean == pytest.approx(0.3 * alpha, abs=4 * sigma / n**0.5)
    assert std == pytest.approx(sigma, rel=3 / n**0.5)
    assert abs(np.corrcoef(np.ravel(x), np.ravel(state))[0, 1]) < 0.03
  # The last step returns the prediction itself.
  np.testing.assert_array_equal(states[2], jnp.full_like(x, 0.3))


def test_two_steps_begin_the_second_at_the_published_noise_level(toys):
  sampler = Renoising(process=toys("edm").process, levels=(0.821,))
  np.testing.assert_allclose(taus(sampler, 2), [80, 0.821], rtol=1e-4)
  # With another number of steps, the times are those of the grid.
  plain = Renoising(process=toys("edm").process)
  for num_steps in (1, 3):
    np.testing.assert_array_equal(
      taus(sampler, num_steps), taus(plain, num_steps)
    )
  assert float(sampler.time(0, 2)) == 0
  # One executable serves every number of steps.
  time = jax.jit(sampler.time)
  assert float(time(1, 2)) == float(sampler.time(1, 2))
  assert float(time(1, 3)) == float(plain.time(1, 3))


def test_the_karras_grid_has_no_step_from_its_lowest_level(toys):
  sampler = Renoising(process=toys("cosine").process, grid="karras")
  edges = np.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), 5) ** 7
  np.testing.assert_allclose(taus(sampler, 4), edges[:0:-1], rtol=1e-3)
  np.testing.assert_allclose(taus(sampler, 1), 80, rtol=1e-3)


def test_noise_levels_that_do_not_fall_are_refused(toys):
  process = toys("edm").process
  with pytest.raises(ValueError, match=r"levels is \(1\.0, 2\.0\); pass noise"):
    Renoising(process=process, levels=(1.0, 2.0))
  with pytest.raises(ValueError, match=r"levels is \(0\.0,\); pass more than"):
    Renoising(process=process, levels=(0.0,))
  with pytest.raises(ValueError, match=r"levels begins with 90\.0, but the fi"):
    Renoising(process=process, levels=(90.0,))
