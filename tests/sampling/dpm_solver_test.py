import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.diffusion.timesteps import grid_time
from diffdistill.sampling.ddim import DDIM
from diffdistill.sampling.dpm_solver import DPMSolver

STEPS = (16, 32, 64, 128)


def errors(toy, kind, z, grid="karras"):
  """The largest error of samples, for each number of steps in STEPS."""
  sampler = kind(process=toy.process, grid=grid, clip=False)
  sample = jax.jit(
    lambda x, num_steps: sampler(toy.denoise, x, jax.random.key(0), num_steps)
  )
  first = float(grid_time(grid, toy.process.schedule, 8, 8))
  x = toy.noise(first, z)
  truth = toy.flow(x, first)
  return [np.abs(sample(x, n)[:, 0, 0] - truth).max() for n in STEPS]


@pytest.mark.parametrize(
  ("name", "data"), [("cosine", "gaussian"), ("edm", "mixture")]
)
def test_dpm_solver_is_of_second_order_and_ddim_of_first(
  toys, order, name, data
):
  toy = toys(name, data)
  z = np.random.default_rng(0).normal(size=(16, toy.means.shape[1]))
  second, first = (errors(toy, kind, z) for kind in (DPMSolver, DDIM))
  assert 1.8 < order(second) < 2.4
  assert 0.8 < order(first) < 1.2
  # Without the memory of the step before, DPM-Solver++ is DDIM.
  assert first[-1] > 5 * second[-1]


def test_a_step_is_that_of_the_paper(toys):
  """Lu et al. 2022, Algorithm 2, in float64."""
  toy = toys("cosine")
  solver = DPMSolver(process=toy.process, clip=False)
  x, times = jnp.full((1, 1, 1, 1), 0.7), (0.8, 0.6, 0.35)
  before = [float(toy.process.schedule.logsnr(jnp.float32(t))) for t in times]
  h, h_before = (before[2] - before[1]) / 2, (before[1] - before[0]) / 2
  memory = jnp.full_like(x, 0.2), jnp.full(1, h_before)
  t, s = (jnp.full(1, time) for time in times[1:])
  x_s, (x0, h_new) = solver.step(
    toy.denoise, x, memory, t, s, jax.random.key(0), jnp.int32(4)
  )
  d = float(toy.denoise(x, t).x0[0, 0, 0, 0])
  assert float(x0[0, 0, 0, 0]) == pytest.approx(d)
  assert float(h_new[0]) == pytest.approx(h, rel=1e-5)
  r = h_before / h
  m = (1 + 1 / (2 * r)) * d - 0.2 / (2 * r)
  (_, sigma_t), (alpha_s, sigma_s) = map(toy.coefficients, times[1:])
  expected = sigma_s / sigma_t * 0.7 - alpha_s * np.expm1(-h) * m
  assert float(x_s[0, 0, 0, 0]) == pytest.approx(expected, abs=1e-6)


def test_one_step_equals_one_of_ddim(toys):
  toy, x = toys("edm"), jnp.full((2, 1, 1, 1), 50.0)
  solver, ddim = (
    kind(process=toy.process)(toy.denoise, x, jax.random.key(0), 1)
    for kind in (DPMSolver, DDIM)
  )
  np.testing.assert_allclose(solver, ddim, rtol=1e-6)
