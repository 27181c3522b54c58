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
    ("flow_map", [0.25]),
    ("one_step", [0.25]),
    # renoising always predicts the end of the trajectory.
    ("renoising", [0.0]),
    # These samplers need the prediction at t only, so they pass no s. A network
    # of two times then predicts as a network of one time does.
    ("ddim", [None]),
    ("ancestral", [None]),
    ("dpm_solver", [None]),
    ("heun", [None, None]),
  ],
)
def test_samplers_tell_the_model_the_time_that_its_prediction_aims_at(
  toys, kind, aims
):
  toy, heard = toys("cosine"), []
  sampler = SAMPLERS[kind](process=toy.process)
  x, t, s = jnp.ones((2, 1, 1, 1)), jnp.full(2, 0.5), jnp.full(2, 0.25)
  key, num_steps = jax.random.key(0), jnp.int32(4)
  memory = sampler.memory(x)
  sampler.step(listening(toy, heard), x, memory, t, s, key, num_steps)
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


@pytest.mark.parametrize("kind", SAMPLERS)
def test_the_prediction_of_the_last_step_is_the_image(toys, kind):
  toy, num_steps = toys("cosine"), 4
  sampler = SAMPLERS[kind](process=toy.process)
  noise = jax.random.normal(jax.random.key(1), (3, 1, 1, toy.means.shape[1]))
  key = jax.random.key(0)
  count = 1 if kind == "one_step" else num_steps
  x = sampler.start(noise, count)
  images = sampler(toy.denoise, x, key, count)
  last = sampler.predicted(toy.denoise, x, key, count, count - 1)
  # The loop is one program and the prediction another, so a float32 may differ
  # in its last bit.
  np.testing.assert_allclose(last, images, rtol=2e-7)


def test_the_predictions_of_an_exact_denoiser_are_those_on_its_path(toys):
  toy, num_steps = toys("cosine"), 4
  sampler = DDIM(process=toy.process, clip=False)
  x = jax.random.normal(jax.random.key(1), (3, 1, 1, toy.means.shape[1]))
  x = sampler.start(x, num_steps)
  x_t = x
  for done in range(num_steps):
    t, s = (jnp.full(3, (num_steps - done - k) / num_steps) for k in (0, 1))
    prediction = toy.denoise(x_t, t, s)
    found = sampler.predicted(
      toy.denoise, x, jax.random.key(0), num_steps, done
    )
    np.testing.assert_allclose(found, prediction.x0, rtol=1e-5, atol=1e-6)
    x_t = toy.process.ddim(x_t, prediction, t, s)


def test_the_first_prediction_is_not_yet_the_image(toys):
  toy = toys("cosine")
  sampler = DDIM(process=toy.process, clip=False)
  x = sampler.start(jnp.ones((1, 1, 1, toy.means.shape[1])), 4)
  key = jax.random.key(0)
  first = sampler.predicted(toy.denoise, x, key, 4, 0)
  assert not np.allclose(first, sampler(toy.denoise, x, key, 4))
