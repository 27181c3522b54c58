"""Guidance distillation: a student that is told the weight of the guidance.

Meng et al. 2023, section 3.1 (stage one), in our names (theirs on the right):

  teacher, student           x_theta, x_eta1
  w                          w, in (1 + w) x_c,theta - w x_theta
  told                       [w_min, w_max]
  weighting                  omega(lambda_t)

  (1)  w ~ U[told] for each image; t ~ U[0, 1); x_t = alpha_t x0 + sigma_t eps
  (2)  target = teacher(x_t, c) + w (teacher(x_t, c) - teacher(x_t, no label))
  (3)  L = weighting(logsnr(t)) ||target - student(x_t, c, w)||^2

One pass of the student makes the prediction of two passes of its teacher, for
every w of the range. Like the teacher, the student may be sampled in any number
of steps. A later stage halves its steps: `progressive` with the same `told`.
The network adds what it learns of w to its embedding by a branch that is zero
at first, so that any teacher is a valid start. Unlike the paper, the target may
be limited to the interval of times of the section `guidance`.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from diffdistill.arrays import Batch, Key
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.timesteps import TimeDraw, Uniform
from diffdistill.diffusion.weighting import weight
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
from diffdistill.objectives.told_weights import (
  Weights,
  check_told,
  draw_weights,
)
from diffdistill.ranges import check_ranges
from diffdistill.sampling.flow_map import FlowMap
from diffdistill.sampling.sampler import Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceDistillation(Objective):
  """Distillation of guidance at every weight of a range (Meng et al. 2023).

  Args:
    denoiser: the architecture of teacher and student, which reads w.
    sampler: the sampler that the student is used with.
    told: the lowest and the highest w that the student is told.
    weighting: a name of `diffusion.weighting`, at logsnr(t).
    draw: the distribution of t.
    guidance: the times at which the teacher is guided. Its weight is the one
      with which student and teacher are sampled; training draws its own.
  """

  denoiser: Denoiser
  sampler: Sampler
  told: Weights = (0.0, 4.0)
  weighting: str = "truncated_snr"
  draw: TimeDraw = dataclasses.field(default_factory=Uniform)
  guidance: Guidance = dataclasses.field(default_factory=Guidance)

  rounds: ClassVar[str] = "any"

  def __post_init__(self):
    weight(self.weighting, jnp.zeros(1))
    check_ranges(self)
    check_told(self.told, self.denoiser)
    self.denoiser.check_guidance(dataclasses.replace(self.guidance, weight=1.0))
    if isinstance(self.sampler, FlowMap):
      raise ValueError(
        "the sampler is flow_map, but a student that is told its guidance"
        " predicts at one time; pass sampler.kind=ddim"
      )

  def passes(self, turn: Turn, num_steps: int, guided: bool) -> Passes:
    return Passes(forward=2 if guided else 1, gradient=1)

  def loss(
    self, turn: Turn, trees: Trees, batch: Batch, key: Key, now: Now
  ) -> Loss:
    x0, condition = batch["image"], batch["condition"]
    process, count = self.denoiser.process, batch["image"].shape[0]
    key_w, key_t, key_eps = jax.random.split(key, 3)
    w = draw_weights(key_w, count, self.told)
    t = self.draw(key_t, count, process.schedule)
    x_t = process.diffuse(x0, jax.random.normal(key_eps, x0.shape), t)
    teacher = self.denoiser.bind(
      trees["teacher"],
      condition,
      dataclasses.replace(self.guidance, weight=1.0),
      scale=w * now.guided,
    )
    target = jax.lax.stop_gradient(teacher(x_t, t).x0)
    student = self.denoiser(
      trees["student"], x_t, t, condition._replace(guidance=w)
    )
    loss, mse = weighted_loss(
      target, student.x0, weight(self.weighting, process.schedule.logsnr(t))
    )
    metrics = {"student/loss": summed(loss), "student/x0_mse": summed(mse)}
    return jnp.mean(loss), metrics
