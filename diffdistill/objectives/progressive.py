"""Progressive distillation: a student that does two teacher steps in one.

Salimans & Ho 2022, Algorithm 2, in our names (theirs on the right):

  x_t, t, mid, s             z_t, t, t' = t - 0.5/N, t'' = t - 1/N
  x1, x2                     the teacher's x at z_t and at z_t'
  num_steps                  N, the student's steps

  (1)  t = i / N, i ~ U{1, ..., N}: the end t = 1 is in the grid
  (2)  x_mid = ddim(x_t, x1, t -> mid); x_s = ddim(x_mid, x2, mid -> s)
  (3)  the target is the x0 whose single DDIM step t -> s lands on x_s:
       x0_target = x1 + w (x2 - x1)
       w = [sin(mid - s) / sin(mid)] / [sin(t - s) / sin(t)], in angles

In the paper the target is the quotient (x_s - (sigma_s/sigma_t) x_t) / (alpha_s
- (sigma_s/sigma_t) alpha_t). (3) is the same, expressed by the teacher's
predictions: a convex combination, which loses no digits in float32. At the last
step (s = 0) the sampler returns x0 itself, so w = 1 there. Neither model is
clipped, the student starts as a copy of the teacher, and no network has
dropout.

If the teacher is told a guidance weight, both networks are told the same one,
drawn for each image (Meng et al. 2023, section 3.2, stage two, with the
deterministic sampler).
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import Batch, Image, Key, Time
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.prediction import Model
from diffdistill.diffusion.process import GaussianProcess, expand_like
from diffdistill.diffusion.timesteps import draw_discrete, fraction
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
from diffdistill.objectives.told_weights import (
  Weights,
  check_told,
  draw_weights,
)
from diffdistill.ranges import check_ranges
from diffdistill.sampling.ddim import DDIM
from diffdistill.sampling.sampler import Sampler


def second_weight(
  process: GaussianProcess, t: Time, mid: Time, s: Time
) -> Float[Array, " b"]:
  """Computes w of equation (3), in [0, 1]: the second prediction's share."""
  schedule = process.schedule
  fine = jnp.sin(schedule.rotation(mid, s)) / jnp.sin(schedule.angle(mid))
  coarse = jnp.sin(schedule.rotation(t, s)) / jnp.sin(schedule.angle(t))
  return jnp.where(s > 0, fine / coarse, 1.0)


def two_step_target(
  process: GaussianProcess,
  model: Model,
  x_t: Image,
  t: Time,
  mid: Time,
  s: Time,
) -> Image:
  """Computes (2) and (3): the x0 of one step that equals two of the model's."""
  first = model(x_t, t)
  x_mid = process.ddim(x_t, first, t, mid)
  x1, x2 = first.x0, model(x_mid, mid).x0
  w = expand_like(second_weight(process, t, mid, s), x_t)
  return x1 + w * (x2 - x1)


class TwoSteps(NamedTuple):
  """Noisy images by equation (1), and the two teacher steps from them."""

  x_t: Image
  t: Time
  mid: Time
  s: Time


def draw_two_steps(
  process: GaussianProcess, x0: Image, key: Key, num_steps: Array
) -> TwoSteps:
  """Draws equation (1) for a student of num_steps steps, from real images."""
  key_t, key_eps = jax.random.split(key)
  t = draw_discrete(key_t, x0.shape[0], num_steps)
  # Count time in whole half steps, so that s is exactly 0 at the last step.
  half_steps = jnp.round(t * (2 * num_steps))
  mid, s = (fraction(half_steps - k, 2 * num_steps) for k in (1, 2))
  x_t = process.diffuse(x0, jax.random.normal(key_eps, x0.shape), t)
  return TwoSteps(x_t=x_t, t=t, mid=mid, s=s)


def check_sampler(sampler: Sampler, student: str = "progressive") -> None:
  """Refuses a sampler whose steps are not those of equation (1).

  Args:
    sampler: the sampler of the student.
    student: the kind of the student, for the message.

  Raises:
    ValueError: if the sampler is not DDIM on the uniform grid from t = 1.
  """
  if (
    not isinstance(sampler, DDIM)
    or sampler.grid != "uniform"
    or sampler.first_time != 1
  ):
    raise ValueError(
      f"a {student} student is made for ddim on a uniform grid from t = 1,"
      f" not {type(sampler).__name__} on {sampler.grid} from"
      f" {sampler.first_time}; pass sampler.kind=ddim, sampler.grid=uniform and"
      " sampler.first_time=1"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progressive(Objective):
  """Progressive distillation (Salimans & Ho 2022, Algorithm 2).

  One object is used in all rounds; now.num_steps differs between rounds.

  Args:
    denoiser: the architecture of teacher and student.
    sampler: the sampler that the student is made for: DDIM on a uniform grid.
    weighting: a name of `diffusion.weighting`, at logsnr(t).
    guidance: the guidance of the first round's teacher; students are not
      guided. (Meng et al. 2023 first distil the guided teacher into a student
      of equally many steps, see guidance_distillation.py; without that stage,
      the first halving distils the guidance of this one weight too.)
    told: the lowest and the highest guidance weight that student and teacher
      are told; empty if they are told none.
  """

  denoiser: Denoiser
  sampler: Sampler
  weighting: str = "truncated_snr"
  guidance: Guidance = dataclasses.field(default_factory=Guidance)
  told: Weights = ()

  rounds: ClassVar[str] = "halving"
  teacher_told: ClassVar[bool] = True

  def __post_init__(self):
    weight(self.weighting, jnp.zeros(1))
    check_ranges(self)
    check_sampler(self.sampler)
    if self.told:
      check_told(self.told, self.denoiser)

  def passes(self, turn: Turn, num_steps: int, guided: bool) -> Passes:
    guided = guided and not self.told
    return Passes(forward=2 * self.guidance.passes(guided), gradient=1)

  def loss(
    self, turn: Turn, trees: Trees, batch: Batch, key: Key, now: Now
  ) -> Loss:
    x0, condition = batch["image"], batch["condition"]
    process = self.denoiser.process
    x_t, t, mid, s = draw_two_steps(process, x0, key, now.num_steps)
    guidance = self.guidance
    if self.told:
      # Folding in 0 or 1 would give the keys of the draws above again.
      key_w = jax.random.fold_in(key, 2)
      weights = draw_weights(key_w, x0.shape[0], self.told)
      condition = condition._replace(guidance=weights)
      guidance = Guidance()
    teacher = bind_teacher(
      self.denoiser, trees["teacher"], condition, guidance, now
    )
    target = jax.lax.stop_gradient(
      two_step_target(process, teacher, x_t, t, mid, s)
    )
    student = self.denoiser(trees["student"], x_t, t, condition)
    w = weight(self.weighting, process.schedule.logsnr(t))
    loss, mse = weighted_loss(target, student.x0, w)
    metrics = {"student/loss": summed(loss), "student/x0_mse": summed(mse)}
    return jnp.mean(loss), metrics
