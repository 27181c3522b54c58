"""Objectives that are no papers: they prove what the interface can say."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from diffdistill.denoiser import Denoiser
from diffdistill.objectives.objective import (
  Objective,
  Passes,
  Tree,
  summed,
  weighted_loss,
)
from diffdistill.sampling.sampler import Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class AverageTarget(Objective):
  """A student that follows its own moving average, a step nearer the data.

  Consistency distillation with a target network (Song et al. 2023, Eq. 7): the
  student at t agrees with its average at s, where one DDIM step of the teacher
  arrives.
  """

  denoiser: Denoiser
  sampler: Sampler

  rounds: ClassVar[str] = "each"

  @property
  def trees(self) -> Mapping[str, Tree]:
    return {"student": Tree(start="teacher", averages={"target": 0.5})}

  @property
  def product(self) -> str:
    return "student/target"

  def passes(self, turn, num_steps, guided):
    return Passes(forward=2, gradient=1)

  def loss(self, turn, trees, batch, key, now):
    x0, condition = batch["image"], batch["condition"]
    process, key_t, key_eps = self.denoiser.process, *jax.random.split(key)
    t = jax.random.uniform(key_t, x0.shape[:1], minval=0.5)
    # The step shrinks as the round goes on.
    s = t - 0.25 * (1 - 0.5 * now.progress) / now.num_steps
    x_t = process.diffuse(x0, jax.random.normal(key_eps, x0.shape), t)
    teacher = self.denoiser.bind(trees["teacher"], condition)
    x_s = process.ddim(x_t, teacher(x_t, t), t, s)
    target = self.denoiser(trees["student/target"], x_s, s, condition).x0
    student = self.denoiser(trees["student"], x_t, t, condition).x0
    loss, _ = weighted_loss(
      jax.lax.stop_gradient(target), student, jnp.ones_like(t)
    )
    return jnp.mean(loss), {"student/loss": summed(loss)}


PROVING = {"average_target": AverageTarget}
