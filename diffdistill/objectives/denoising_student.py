"""The Denoising Student: one step that equals a teacher's whole sampler.

Luhman & Luhman 2021, in our names (theirs on the right):

  noise, image               X_T, F_teacher(X_T): a pair of an earlier stage
  student                    F_student: one step of the sampler `OneStep`

  (1)  student(noise) = noise - net(noise, T), form "difference", or the
       network's x0 at t = 1, form "x0"
  (2)  L = E |student(noise) - image|^p over the pairs: p = 1 for CIFAR-10,
       p = 2 for CelebA and LSUN

With p = 2, (2) is twice the divergence of two unit Gaussians, one around the
teacher's image and one around the student's. Only the choice of the pairs is
random: an update draws no time, noise or weight. No image is clipped, the
student starts as a copy of the teacher, and no network has dropout.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp

from diffdistill.arrays import Batch, Image, Key
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.timesteps import per_example
from diffdistill.objectives.objective import (
  Loss,
  Now,
  Objective,
  Passes,
  Trees,
  Turn,
  summed,
)
from diffdistill.sampling.one_step import OneStep
from diffdistill.sampling.sampler import Sampler


def _absolute(x: Image) -> Image:
  """Computes |x| with the derivative 0 at x = 0, where jnp.abs has 1."""
  return x * jnp.sign(x)


NORMS = {"l1": _absolute, "l2": jnp.square}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisingStudent(Objective):
  """Regression of one step onto a teacher's images (Luhman & Luhman 2021).

  Args:
    denoiser: the architecture of teacher and student.
    sampler: the sampler that the student is made for: one_step.
    norm: "l1" or "l2", see equation (2). Unlike the paper, the norm is a mean
      over pixels, not a sum; this changes only the effect of Adam's epsilon.
  """

  denoiser: Denoiser
  sampler: Sampler
  norm: str = "l2"

  consumes: ClassVar[str] = "pairs"
  rounds: ClassVar[str] = "one_step"

  def __post_init__(self):
    if self.norm not in NORMS:
      raise ValueError(f"norm is {self.norm!r}; pass one of {', '.join(NORMS)}")
    if not isinstance(self.sampler, OneStep):
      raise ValueError(
        "a denoising student is made for one_step, not"
        f" {type(self.sampler).__name__}; pass sampler.kind=one_step"
      )
    if self.sampler.form == "difference" and self.denoiser.output != "eps":
      # A network that predicts eps outputs eps = noise at t = 1, so its
      # "difference" image is always 0.
      raise ValueError(
        "sampler.form is 'difference', but the network's output is"
        f" {self.denoiser.output!r}; pass sampler.form=x0"
      )

  @property
  def needs(self) -> Mapping[str, str]:
    return {}

  def passes(self, turn: Turn, num_steps: int, guided: bool) -> Passes:
    return Passes(gradient=1)

  def loss(
    self, turn: Turn, trees: Trees, batch: Batch, key: Key, now: Now
  ) -> Loss:
    noise, condition = batch["noise"], batch["condition"]
    sampler = dataclasses.replace(self.sampler, clip=False)
    t, s = (per_example(sampler.time(i, 1), noise) for i in (1, 0))
    image, _ = sampler.step(
      self.denoiser.bind(trees["student"], condition),
      sampler.start(noise, 1),
      (),
      t,
      s,
      key,
      jnp.int32(1),
    )
    difference = image - batch["image"]
    loss = jnp.mean(NORMS[self.norm](difference), axis=(1, 2, 3))
    mse = jnp.mean(jnp.square(difference), axis=(1, 2, 3))
    metrics = {"student/loss": summed(loss), "student/x0_mse": summed(mse)}
    return jnp.mean(loss), metrics
