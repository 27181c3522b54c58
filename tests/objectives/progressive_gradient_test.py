"""Tests that the progressive loss has no gradient at its target, and no NaN."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.arrays import UNCONDITIONAL
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.precondition import EDMPrecondition, Identity
from diffdistill.diffusion.prediction import OUTPUTS
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import Cosine
from diffdistill.diffusion.timesteps import fraction
from diffdistill.networks.analytic import GaussianMixture
from diffdistill.objectives.progressive import Progressive, two_step_target
from diffdistill.sampling.ddim import DDIM
from tests.diffusion.given import SCHEDULES
from tests.objectives.given import MIXTURE, OneTime, batch_of
from tests.objectives.given import loss_of as loss_of_trees


def objective(network, schedule, **fields):
  process = GaussianProcess(schedule=schedule)
  fields = {"precondition": Identity(noise="time")} | fields
  return Progressive(
    denoiser=Denoiser(network=network, process=process, **fields),
    sampler=DDIM(process=process),
  )


def exact(schedule):
  return objective(GaussianMixture(schedule=schedule), schedule)


def loss_of(goal, student, teacher, x0, key, num_steps):
  trees = {"student": student, "teacher": teacher}
  return loss_of_trees(goal, trees, batch_of(x0), key, num_steps=num_steps)


@functools.cache
def data(n, seed=0):
  network = GaussianMixture(schedule=Cosine())
  return network.sample(MIXTURE, jax.random.key(seed), n)


@dataclasses.dataclass(frozen=True)
class Affine(OneTime):
  """A network that outputs scale x + offset, repeated `copies` times."""

  copies: int = 1

  def init(self, key):
    return {}

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    out = params["scale"] * x + params["offset"]
    return jnp.concatenate([out] * self.copies, axis=-1)


@dataclasses.dataclass(frozen=True)
class Ideal(OneTime):
  """A network: exact denoiser as teacher, two-step target as student."""

  schedule: Cosine
  num_steps: int

  def init(self, key):
    return {}

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    mixture = GaussianMixture(schedule=self.schedule)
    if "scale" not in params:
      return mixture.apply(params, x, t)
    process = GaussianProcess(schedule=self.schedule)
    teacher = Denoiser(
      network=mixture, process=process, precondition=Identity(noise="time")
    ).bind(MIXTURE)
    half_steps = jnp.round(t * (2 * self.num_steps))
    mid, end = (fraction(half_steps - k, 2 * self.num_steps) for k in (1, 2))
    target = two_step_target(process, teacher, x, t, mid, end)
    return params["scale"] * target + params["offset"]


@pytest.mark.parametrize("num_steps", [1, 4])
def test_a_student_at_its_target_has_no_gradient(num_steps):
  goal, x0 = objective(Ideal(Cosine(), num_steps), Cosine()), data(64)

  @jax.jit
  @jax.value_and_grad
  def run(student):
    key = jax.random.key(1)
    return loss_of(goal, student, MIXTURE, x0, key, num_steps)[0]

  def gradient(scale, offset):
    student = {"scale": jnp.float32(scale), "offset": jnp.float32(offset)}
    value, gradient = run(student)
    return float(value), float(gradient["scale"]), float(gradient["offset"])

  np.testing.assert_allclose(gradient(1, 0), 0, atol=1e-6)
  assert gradient(1.1, 0)[0] > 1e-4
  assert gradient(1.1, 0)[1] > 1e-3
  assert gradient(0.9, 0)[1] < -1e-3
  assert gradient(1, 0.1)[2] > 1e-2


def test_the_teacher_gets_no_gradient():
  goal, x0 = exact(Cosine()), data(64)
  student = MIXTURE | {"std": jnp.array([0.5, 0.4])}

  def loss(params):
    student, teacher = params
    key = jax.random.key(2)
    return loss_of(goal, student, teacher, x0, key, 2)[0]

  of_student, of_teacher = jax.jit(jax.grad(loss))((student, MIXTURE))
  for leaf in jax.tree.leaves(of_teacher):
    np.testing.assert_array_equal(leaf, 0)
  for leaf in jax.tree.leaves(of_student):
    assert np.all(np.isfinite(leaf))
    assert np.abs(leaf).max() > 1e-6


def finite_gradient(goal, num_steps):
  student = {"scale": jnp.float32(0.3), "offset": jnp.float32(0.1)}
  teacher = {"scale": jnp.float32(0.5), "offset": jnp.float32(0.0)}
  x0 = data(64)

  @jax.jit
  def run(num_steps):
    return jax.value_and_grad(
      lambda p: loss_of(goal, p, teacher, x0, jax.random.key(3), num_steps)[0]
    )(student)

  for n in num_steps:
    value, gradient = run(n)
    assert np.isfinite(value)
    assert all(np.isfinite(v) and v != 0 for v in gradient.values())


@pytest.mark.parametrize("name", SCHEDULES)
def test_gradients_are_finite_at_the_ends_of_every_schedule(name):
  """With one step, t = 1 and s = 0; with 8192 steps, t comes near 0."""
  finite_gradient(objective(Affine(), SCHEDULES[name]), (1, 2, 8192))


@pytest.mark.parametrize("output", OUTPUTS)
def test_gradients_are_finite_for_every_output(output):
  network = Affine(copies=2 if output == "both" else 1)
  goal = objective(network, Cosine(), output=output)
  finite_gradient(goal, (1, 8192))


def test_gradients_are_finite_with_edm_preconditioning():
  goal = objective(Affine(), Cosine(), precondition=EDMPrecondition())
  finite_gradient(goal, (1, 8192))
