import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.diffusion.timesteps import grid_time
from diffdistill.sampling.ddim import DDIM
from diffdistill.sampling.heun import Heun

Z = np.random.default_rng(0).normal(size=(16, 2))
STEPS = (16, 32, 64, 128)


def errors(toy, sampler, z):
  """The largest error of samples, for each number of steps in STEPS."""
  sample = jax.jit(
    lambda x, num_steps: sampler(toy.denoise, x, jax.random.key(0), num_steps)
  )
  first = float(grid_time(sampler.grid, toy.process.schedule, 8, 8))
  x = toy.noise(first, z)
  truth = toy.flow(x, first)
  return [np.abs(sample(x, n)[:, 0, 0] - truth).max() for n in STEPS]


@pytest.mark.parametrize("name", ["cosine", "linear", "edm", "flow"])
def test_heun_is_of_second_order_for_one_gaussian(toys, order, name):
  toy = toys(name)
  error = errors(toy, Heun(process=toy.process, clip=False), Z[:, :1])
  # The bounds are around the orders that we measured between successive STEPS:
  # 2.2, 2.1 and 2.07.
  assert 1.9 < order(error) < 2.3
  assert error[-1] < 2e-3


@pytest.mark.parametrize("name", ["cosine", "edm"])
def test_heun_is_of_second_order_for_a_mixture(toys, order, name):
  toy = toys(name, "mixture")
  error = errors(toy, Heun(process=toy.process, clip=False), Z)
  assert 1.8 < order(error) < 2.5
  assert error[-1] < 2e-3


def test_heun_is_of_second_order_on_the_uniform_grid_of_edm(toys, order):
  toy = toys("edm")
  sampler = Heun(process=toy.process, grid="uniform", clip=False)
  assert 1.9 < order(errors(toy, sampler, Z[:, :1])) < 2.3


def test_one_heun_step_equals_one_ddim_step(toys):
  toy, x = toys("edm"), jnp.full((2, 1, 1, 1), 50.0)
  heun, ddim = (
    kind(process=toy.process, grid="karras")(
      toy.denoise, x, jax.random.key(0), 1
    )
    for kind in (Heun, DDIM)
  )
  np.testing.assert_array_equal(heun, ddim)


@pytest.mark.parametrize(
  ("name", "churn_min"), [("edm", 0.0), ("cosine", 0.05)]
)
def test_samples_with_churn_are_random_and_keep_their_moments(
  toys, name, churn_min
):
  toy, n, num_steps = toys(name), 10_000, 64
  sampler = Heun(
    process=toy.process, clip=False, churn=20.0, churn_min=churn_min
  )
  key_x, key = jax.random.split(jax.random.key(1))
  x = sampler.start(jax.random.normal(key_x, (n, 1, 1, 1)), num_steps)
  sample = jax.jit(lambda x, key: sampler(toy.denoise, x, key, num_steps))
  samples = np.asarray(sample(x, key))
  mean, std = toy.means[0, 0], toy.std[0]
  # The tolerances are standard errors plus the bias that 64 steps cause.
  assert samples.mean() == pytest.approx(mean, abs=4 * std / n**0.5 + 0.003)
  assert samples.std() == pytest.approx(std, abs=3 * std / n**0.5 + 0.006)
  other = np.asarray(sample(x, key_x))
  correlation = np.corrcoef(samples.ravel(), other.ravel())[0, 1]
  assert correlation < 0.7


def test_churn_adds_noise_by_the_formula_of_karras(toys):
  """The new level is sigma (1 + gamma): Karras et al. 2022, Algorithm 2."""
  toy, n = toys("cosine"), 50_000
  schedule = toy.process.schedule
  sampler = Heun(process=toy.process, churn=10.0, churn_noise=1.1)
  t = jnp.full(n, 0.4)
  x, t_hat = sampler._churned(
    jnp.full((n, 1, 1, 1), 0.5), t, jax.random.key(2), jnp.int32(40)
  )
  tau, tau_hat = (
    float(jnp.exp(-0.5 * schedule.logsnr(u[0]))) for u in (t, t_hat)
  )
  assert tau_hat == pytest.approx(1.25 * tau, rel=1e-5)
  alpha, alpha_hat = (float(schedule.alpha(u[0])) for u in (t, t_hat))
  assert float(x.mean()) == pytest.approx(0.5 * alpha_hat / alpha, abs=0.01)
  added = 1.1 * alpha_hat * (tau_hat**2 - tau**2) ** 0.5
  assert float(x.std()) == pytest.approx(added, rel=0.015)
  # The paper limits gamma to sqrt(2) - 1.
  _, t_hat = sampler._churned(x, t, jax.random.key(2), jnp.int32(2))
  tau_hat = float(jnp.exp(-0.5 * schedule.logsnr(t_hat[0])))
  assert tau_hat == pytest.approx(2**0.5 * tau, rel=1e-5)


def test_churn_changes_nothing_outside_its_noise_range(toys):
  toy, x = toys("cosine"), jnp.ones((2, 1, 1, 1))
  sampler = Heun(process=toy.process, churn=10.0, churn_min=1.0, churn_max=2.0)
  t = jnp.array([0.2, 0.9])
  x_hat, t_hat = sampler._churned(x, t, jax.random.key(2), jnp.int32(8))
  np.testing.assert_array_equal(t_hat, t)
  np.testing.assert_array_equal(x_hat, x)


def test_negative_churn_is_refused(toys):
  with pytest.raises(ValueError, match=r"churn is -1\.0; pass 0 or more"):
    Heun(process=toys("edm").process, churn=-1.0)
