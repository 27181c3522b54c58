"""Tests of the target time s that samplers pass on, and of early stops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.diffusion.prediction import from_x0
from diffdistill.sampling import SAMPLERS
from diffdistill.sampling.ddim import DDIM


def listening(toy, heard):
  """Returns the toy's model, which also records the time s of each call."""

  def model(x_t, t, s=None):
    heard.append(None if s is None else float(s[0]))
    return toy.denoise(x_t, t, s)

  return model


@pytest.mark.parametrize(
  ("kind", "aims"),
  [
    ("ddim", [0.25]),
    ("one_step", [0.25]),
    # ancestral and heun need the prediction at t only, so they pass no s.
    ("ancestral", [None]),
    ("heun", [None, None]),
  ],
)
def test_only_ddim_and_one_step_pass_the_target_time_to_the_model(
  toys, kind, aims
):
  toy, heard = toys("cosine"), []
  sampler = SAMPLERS[kind](process=toy.process)
  x, t, s = jnp.ones((2, 1, 1, 1)), jnp.full(2, 0.5), jnp.full(2, 0.25)
  key, num_steps = jax.random.key(0), jnp.int32(4)
  sampler.step(listening(toy, heard), x, (), t, s, key, num_steps)
  assert heard == aims


@pytest.mark.parametrize("grid", ["uniform", "karras"])
def test_a_stopped_rollout_is_at_the_target_time_of_its_last_step(toys, grid):
  toy, num_steps, traces = toys("cosine"), 5, []
  sampler = DDIM(process=toy.process, grid=grid)
  x0, eps = jnp.full((2, 1, 1, 1), 0.3), jnp.full((2, 1, 1, 1), -0.7)

  def model(x_t, t, s=None):
    return from_x0(x0, x_t, *toy.process.coefficients(t, x_t))

  @jax.jit
  def rollout(x, stop):
    traces.append(stop)
    return sampler(model, x, jax.random.key(0), num_steps, stop)

  t = jnp.full(2, sampler.time(num_steps, num_steps))
  x = toy.process.diffuse(x0, eps, t)
  for stop in range(num_steps):
    t = jnp.full(2, sampler.time(num_steps - stop, num_steps))
    expected = toy.process.diffuse(x0, eps, t)
    np.testing.assert_allclose(rollout(x, stop), expected, atol=1e-5)
  # A rollout of all steps ends at x0; one compilation serves every stop.
  np.testing.assert_array_equal(rollout(x, num_steps), x0)
  assert len(traces) == 1


def test_a_stopped_rollout_can_be_continued_to_the_same_end(toys):
  toy = toys("edm")
  sampler = DDIM(process=toy.process, clip=False)
  x = toy.noise(1.0, np.ones((3, 1)))
  key = jax.random.key(0)
  stopped = sampler(toy.denoise, x, key, 4, 3)
  t, s = jnp.full(3, sampler.time(1, 4)), jnp.zeros(3)
  last, _ = sampler.step(toy.denoise, stopped, (), t, s, key, jnp.int32(4))
  np.testing.assert_allclose(
    last, sampler(toy.denoise, x, key, 4), rtol=1e-5, atol=1e-6
  )
