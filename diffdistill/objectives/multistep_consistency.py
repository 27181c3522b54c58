"""Multistep consistency models: a consistency model within each of k segments.

Heek et al. 2024, Algorithm 1, in our names (theirs on the right):

  num_steps                  k, the student's steps: its segments of time
  e                          t_step: the clean end j / k of a segment
  t > s >= e                 t > s
  x1                         the teacher's x at x_t
  x2                         x_ref: the student's x at x_s, without gradient

A segment has M steps of the teacher, and M grows during training:

  (1)  M = round(N / k), log N linear in the progress from log(first) to
       log(last), which it reaches after a share `anneal` of the training
  (2)  t = (j M + n) / (k M), s = t - 1 / (k M), for uniform j < k and n of 1..M
  (3)  x_s = ddim(x_t, x1, t -> s); z = ddim(x_s, x2, s -> e), or x_s if s = e
  (4)  the target is the x0 whose single DDIM step t -> e ends at z:
       target = x1 + w (x2 - x1), with w of progressive distillation, from t by
       s to e; w = 0 if s = e

k = 1 is consistency distillation, and M = 1 is distillation into an equal
sampler. Unlike the paper, the teacher's step is DDIM, and not DDIM with
adjusted noise, and (4) loses no digits: see objectives/progressive.py.
"""

import dataclasses
import math
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffdistill.arrays import Batch, Key, Time
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.process import expand_like
from diffdistill.diffusion.timesteps import fraction
from diffdistill.diffusion.weighting import weight
from diffdistill.objectives.objective import (
  Loss,
  Now,
  Objective,
  Passes,
  Trees,
  Turn,
  bind_teacher,
  summed,
  weighted_loss,
)
from diffdistill.objectives.progressive import check_sampler, second_weight
from diffdistill.ranges import Range, Steps, check_ranges
from diffdistill.sampling.sampler import Sampler


class Times(NamedTuple):
  """The times of equation (2), of each example."""

  t: Time
  s: Time
  e: Time


def draw_times(
  key: Key, batch_size: int, num_steps: Int[Array, ""], parts: Int[Array, ""]
) -> Times:
  """Draws equation (2) for num_steps segments of `parts` steps each."""
  key_segment, key_part = jax.random.split(key)
  j = jax.random.randint(key_segment, (batch_size,), 0, num_steps)
  n = jax.random.randint(key_part, (batch_size,), 1, parts + 1)
  all_parts = num_steps * parts
  t = fraction(j * parts + n, all_parts)
  return Times(
    t=t, s=fraction(j * parts + n - 1, all_parts), e=fraction(j, num_steps)
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultistepConsistency(Objective):
  """Multistep consistency distillation (Heek et al. 2024, Algorithm 1).

  Args:
    denoiser: the architecture of teacher and student.
    sampler: the sampler that the student is made for: DDIM on a uniform grid.
    guidance: the guidance of the teacher.
    weighting: a name of `diffusion.weighting`, at logsnr(t).
    first, last: the teacher's steps over all segments, N of equation (1), at
      first and at the end. A segment has one step at least.
    anneal: the share of the training in which N grows.
    dropout: whether the student has dropout; it drops the same units at t and
      at s.
  """

  denoiser: Denoiser
  sampler: Sampler
  guidance: Guidance = dataclasses.field(default_factory=Guidance)
  weighting: str = "truncated_snr"
  first: Steps = 64
  last: Steps = 1280
  anneal: Annotated[float, Range(0, 1, "least")] = 0.5
  dropout: bool = False

  rounds: ClassVar[str] = "each"

  def __post_init__(self):
    check_ranges(self)
    weight(self.weighting, jnp.zeros(1))
    check_sampler(self.sampler, "multistep consistency")
    if self.first > self.last:
      raise ValueError(
        f"first is {self.first} and last is {self.last}; pass first <= last"
      )

  def passes(self, turn: Turn, num_steps: int, guided: bool) -> Passes:
    return Passes(forward=1 + self.guidance.passes(guided), gradient=1)

  def parts(
    self, num_steps: Int[Array, ""], progress: Float[Array, ""]
  ) -> Int[Array, ""]:
    """The teacher's steps in each segment, M of equation (1)."""
    grown = jnp.minimum(progress / self.anneal, 1.0)
    steps = self.first * jnp.exp(grown * math.log(self.last / self.first))
    return jnp.maximum(jnp.round(steps / num_steps), 1).astype(jnp.int32)

  def loss(
    self, turn: Turn, trees: Trees, batch: Batch, key: Key, now: Now
  ) -> Loss:
    x0, condition = batch["image"], batch["condition"]
    process = self.denoiser.process
    key_times, key_eps, key_dropout = jax.random.split(key, 3)
    parts = self.parts(now.num_steps, now.progress)
    t, s, e = draw_times(key_times, x0.shape[0], now.num_steps, parts)
    x_t = process.diffuse(x0, jax.random.normal(key_eps, x0.shape), t)
    teacher = bind_teacher(
      self.denoiser, trees["teacher"], condition, self.guidance, now
    )
    student = self.denoiser.bind(
      trees["student"], condition, key=key_dropout if self.dropout else None
    )
    first = teacher(x_t, t)
    x1, x2 = first.x0, student(process.ddim(x_t, first, t, s), s).x0
    w = jnp.where(s > e, second_weight(process, t, s, e), 0.0)
    target = jax.lax.stop_gradient(x1 + expand_like(w, x_t) * (x2 - x1))
    loss, mse = weighted_loss(
      target,
      student(x_t, t).x0,
      weight(self.weighting, process.schedule.logsnr(t)),
    )
    metrics = {"student/loss": summed(loss), "student/x0_mse": summed(mse)}
    return jnp.mean(loss), metrics
