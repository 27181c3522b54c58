"""Reflow: a flow that is straight, because it learns a teacher's own pairs.

Liu et al. 2022 (rectified flow), section 2.2, in our names (theirs on the
right):

  noise, image               Z_0, Z_1: a noise, and the end of the teacher's
                             trajectory from it
  student                    v: the velocity of the new flow

  (1)  x_t = alpha_t image + sigma_t noise, t of any draw
  (2)  L = ||velocity(student(x_t, t)) - (alpha' image + sigma' noise)||^2

On the schedule `rectified_flow` the target of (2) is noise - image. Unlike the
paper, (1) and (2) are defined for every schedule: each pair is then a path of
that schedule, on which one step of DDIM is exact.

Denoising learns from independent noises and images, whose paths cross, so its
flow is curved. The paths of pairs do not cross, so that few steps, or one, are
enough. The student is also a better teacher for other papers.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp

from diffdistill.arrays import Batch, Key
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.prediction import Prediction
from diffdistill.diffusion.timesteps import TimeDraw, Uniform
from diffdistill.objectives.objective import (
  Loss,
  Now,
  Objective,
  Passes,
  Trees,
  Turn,
  summed,
  weighted_loss,
)
from diffdistill.sampling.sampler import Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reflow(Objective):
  """Denoising of a teacher's pairs, whose flow is straight (Liu et al. 2022).

  Args:
    denoiser: the architecture of teacher and student.
    sampler: the sampler that the student is used with.
    draw: the distribution of t.
  """

  denoiser: Denoiser
  sampler: Sampler
  draw: TimeDraw = dataclasses.field(default_factory=Uniform)

  consumes: ClassVar[str] = "pairs"
  rounds: ClassVar[str] = "any"

  @property
  def needs(self) -> Mapping[str, str]:
    return {}

  def passes(self, turn: Turn, num_steps: int, guided: bool) -> Passes:
    return Passes(gradient=1)

  def loss(
    self, turn: Turn, trees: Trees, batch: Batch, key: Key, now: Now
  ) -> Loss:
    true = Prediction(x0=batch["image"], eps=batch["noise"])
    process = self.denoiser.process
    t = self.draw(key, true.x0.shape[0], process.schedule)
    x_t = process.diffuse(true.x0, true.eps, t)
    student = self.denoiser(trees["student"], x_t, t, batch["condition"])
    found, aim = (process.velocity(p, x_t, t) for p in (student, true))
    loss, _ = weighted_loss(aim, found, jnp.ones_like(t))
    mse = jnp.mean(jnp.square(true.x0 - student.x0), axis=(1, 2, 3))
    metrics = {"student/loss": summed(loss), "student/x0_mse": summed(mse)}
    return jnp.mean(loss), metrics
