"""Tests that reflow makes a straight flow of a Gaussian teacher's pairs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.timesteps import Uniform
from diffdistill.objectives.reflow import Reflow
from diffdistill.sampling.ddim import DDIM
from tests.objectives.given import batch_of, loss_of
from tests.objectives.trajectories import (
  MU,
  SCHEDULES,
  STD,
  Lines,
  denoiser_of,
  signs,
)

STEPS = 4
TIMES = tuple((np.arange(STEPS + 1) / STEPS).tolist())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Every(Uniform):
  """Every time of a grid, each for 8 rows."""

  def __call__(self, key, batch_size, schedule):
    return jnp.repeat(jnp.array(TIMES[1:]), 8)


def images_of(name, image):
  """The mean and the std of the student's images in 1 and in 4 steps.

  Args:
    name: the name of the schedule.
    image: the sign of each image of a pair; the image is MU + STD sign.
  """
  denoiser = denoiser_of(Lines(SCHEDULES[name], TIMES), SCHEDULES[name])
  sampler = DDIM(process=denoiser.process, clip=False)
  goal = Reflow(denoiser=denoiser, sampler=sampler, draw=Every())
  _, noise, _ = signs(STEPS)
  batch = batch_of(jnp.asarray(MU + STD * image), noise=jnp.asarray(noise))

  def loss(params):
    return loss_of(goal, {"student": params}, batch, jax.random.key(0))[0]

  # The loss is quadratic and the network linear, so differences solve it.
  zero = denoiser.network.init(None)
  units = jnp.eye(zero.size).reshape(-1, *zero.shape)
  found = jax.jit(jax.vmap(jax.grad(loss)))(
    jnp.concatenate([zero[None], units])
  )
  found = np.asarray(found, np.float64).reshape(-1, zero.size)
  solved = np.linalg.solve((found[1:] - found[0]).T, -found[0])
  model = denoiser.bind(jnp.asarray(solved.reshape(zero.shape), jnp.float32))
  result = []
  for num_steps in (1, STEPS):
    x = sampler.start(jnp.array([-1.0, 1.0]).reshape(2, 1, 1, 1), num_steps)
    low, high = np.ravel(sampler(model, x, jax.random.key(0), num_steps))
    result += [(low + high) / 2, (high - low) / 2]
  return result


@pytest.mark.parametrize("name", ["preserving", "flow"])
def test_one_step_and_four_steps_of_a_reflowed_student_are_exact(name):
  """The teacher's trajectories end at MU + STD noise."""
  _, noise, _ = signs(STEPS)
  # The tolerance is for the alpha of t = 1, which is not exactly 0.
  expected = [MU, STD, MU, STD]
  np.testing.assert_allclose(images_of(name, noise), expected, atol=3e-4)


def test_with_images_of_other_noises_one_step_makes_only_the_mean():
  image, _, _ = signs(STEPS)
  mean, std, _, _ = images_of("flow", image)
  assert mean == pytest.approx(MU, abs=1e-3)
  assert abs(std) < 1e-3


def test_the_target_on_rectified_flow_is_the_noise_minus_the_image():
  goal = Reflow(
    denoiser=denoiser_of(Lines(SCHEDULES["flow"], TIMES), SCHEDULES["flow"]),
    sampler=DDIM(process=GaussianProcess(schedule=SCHEDULES["flow"])),
    draw=Every(),
  )
  rng = np.random.default_rng(0)
  image, noise = rng.normal(size=(2, 8 * STEPS, 1, 1, 1)).astype(np.float32)
  t = np.repeat(TIMES[1:], 8).reshape(-1, 1, 1, 1)
  loss, _ = loss_of(
    goal,
    {"student": jnp.zeros((STEPS, 2))},
    batch_of(jnp.asarray(image), noise=jnp.asarray(noise)),
    jax.random.key(0),
  )
  # The student predicts x0 = 0, so its velocity is x_t / t.
  t = np.minimum(t, 1 - 1e-5)
  velocity = ((1 - t) * image + t * noise) / t
  expected = np.mean((velocity - (noise - image)) ** 2)
  assert float(loss) == pytest.approx(expected, rel=1e-3)
