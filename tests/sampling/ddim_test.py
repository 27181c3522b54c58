import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.diffusion.prediction import from_x0
from diffdistill.sampling.ddim import DDIM

Z = np.random.default_rng(0).normal(size=(16, 2))
STEPS = (16, 32, 64, 128)


def errors(toy, sampler, z):
  """The largest error of samples, for each number of steps in STEPS."""
  sample = jax.jit(
    lambda x, num_steps: sampler(toy.denoise, x, jax.random.key(0), num_steps)
  )
  x = toy.noise(1.0, z)
  truth = toy.flow(x, 1.0)
  return [np.abs(sample(x, n)[:, 0, 0] - truth).max() for n in STEPS]


@pytest.mark.parametrize("name", ["cosine", "linear", "edm", "flow", "shifted"])
def test_ddim_is_of_first_order_for_one_gaussian(toys, order, name):
  toy = toys(name)
  error = errors(toy, DDIM(process=toy.process, clip=False), Z[:, :1])
  # The bounds are around the measured orders, which are 0.92 to 0.99. The steps
  # of LinearBeta near t = 1 are coarse.
  assert 0.88 < order(error) < 1.1
  assert error[-1] < 0.03


@pytest.mark.parametrize("name", ["cosine", "edm", "flow"])
def test_ddim_is_of_first_order_for_a_mixture(toys, order, name):
  toy = toys(name, "mixture")
  error = errors(toy, DDIM(process=toy.process, clip=False), Z)
  assert 0.85 < order(error) < 1.15
  assert error[-1] < 0.03


@pytest.mark.parametrize("grid", ["quadratic", "karras"])
def test_ddim_is_of_first_order_on_other_grids(toys, order, grid):
  toy = toys("cosine")
  sampler = DDIM(process=toy.process, grid=grid, clip=False)
  error = errors(toy, sampler, Z[:, :1])
  assert 0.9 < order(error) < 1.1
  assert error[-1] < 0.03


@pytest.mark.parametrize("name", ["cosine", "edm", "flow"])
def test_ddim_reaches_a_point_mass_in_any_number_of_steps(toys, name):
  toy = toys(name)
  x0 = jnp.full((3, 1, 1, 1), 0.3)
  sampler = DDIM(process=toy.process)

  def denoise(x_t, t, s=None):
    return from_x0(x0, x_t, *toy.process.coefficients(t, x_t))

  for num_steps in (1, 2, 7):
    x = sampler(denoise, 2 * x0, jax.random.key(0), num_steps)
    np.testing.assert_array_equal(x, x0)


def test_ddim_samples_do_not_depend_on_the_key(toys):
  toy, x = toys("cosine"), jnp.ones((2, 1, 1, 1))
  sampler = DDIM(process=toy.process)
  one, other = (
    sampler(toy.denoise, x, jax.random.key(seed), 3) for seed in (0, 1)
  )
  np.testing.assert_array_equal(one, other)
