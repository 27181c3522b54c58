"""SiD: a one-step student whose noised images have the teacher's scores.

Zhou et al. 2024, in our names (theirs on the right):

  x                          x_g = G(sigma_init z): the student's image
  x_s                        x_t: x with noise of a drawn time s
  teacher, critic            f_phi, f_psi: denoisers of the data and of x
  slack                      alpha

The student minimises the Fisher divergence between its noised images and those
of the teacher. For the exact critic of the student,

  (1)  E |delta|^2 = E delta . (teacher(x_s) - x),  delta = teacher - critic

so the loss of the student needs no data:

  (2)  L(student) = delta . (teacher(x_s) - x - slack delta) / e,
       e = sg mean|x - teacher(x_s)|
  (3)  L(critic)  = w |sg x - critic(x_s)|^2,  w = w(logsnr(s))

The gradient of (2) flows into x, and through x_s into teacher and critic, whose
weights are fixed. Stopping it at delta gives another method with the same
optimum. Critic and student learn in turns, one update each. For Gaussian images
and an exact critic, a slack from 1/2 to 1 always descends. A slack of 1.2, that
of the paper, pushes the student away from the teacher where its variance v and
the teacher's v* have v + tau^2 > 6 (v* + tau^2), tau = sigma/alpha; a student
that starts as a copy of the teacher is far from there.

The student starts from noise at the sampler's first time. In the paper, that is
the time at which sigma/alpha is 2.5.

Unlike the paper, the products are means over an image, not sums, as in every
other objective here. No loss has the constant factors of the paper's code,
because the updates of Adam do not depend on them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import Batch, Condition, Image, Key, Params
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.timesteps import (
  KarrasCurve,
  Lognormal,
  TimeDraw,
  per_example,
)
from diffdistill.diffusion.weighting import weight
from diffdistill.objectives.objective import (
  Loss,
  Now,
  Objective,
  Passes,
  Tree,
  Trees,
  Turn,
  bind_teacher,
  summed,
  weighted_loss,
)
from diffdistill.ranges import Range, check_ranges
from diffdistill.sampling.one_step import OneStep
from diffdistill.sampling.sampler import Sampler

# The least mean error by which equation (2) divides.
LEAST_ERROR = 1e-5


def identity_loss(
  x: Image, teacher: Image, critic: Image, slack: float
) -> Float[Array, " b"]:
  """Computes the product of equation (2), as a mean over each image."""
  delta = teacher - critic
  return jnp.mean(delta * (teacher - x - slack * delta), axis=(1, 2, 3))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreIdentity(Objective):
  """Score identity distillation, SiD (Zhou et al. 2024).

  The critic learns on even updates, the student on odd ones.

  Args:
    denoiser: the architecture of teacher, student and critic.
    sampler: the sampler that the student is made for: one_step, form x0. Its
      `first_time` is where the student starts.
    slack: alpha of equation (2). (Paper: 1.2. Default: 1, which is safe from
      any start.)
    draw: the distribution of s for the student. The default is that of the
      paper's code: 80 % of the Karras curve, from its clean end.
    critic_draw: the distribution of s for the critic.
    weighting: a name of `diffusion.weighting` for the critic, at logsnr(s).
    normalise: whether equation (2) divides by the mean error of the image.
    guidance: the guidance of the teacher.
    dropout: whether student and critic have dropout.
  """

  denoiser: Denoiser
  sampler: Sampler
  slack: Annotated[float, Range(0, 10)] = 1.0
  draw: TimeDraw = dataclasses.field(
    default_factory=lambda: KarrasCurve(most=0.8)
  )
  critic_draw: TimeDraw = dataclasses.field(default_factory=Lognormal)
  weighting: str = "edm"
  normalise: bool = True
  guidance: Guidance = dataclasses.field(default_factory=Guidance)
  dropout: bool = False

  rounds: ClassVar[str] = "one_step"

  def __post_init__(self):
    check_ranges(self)
    weight(self.weighting, jnp.zeros(1))
    if not (isinstance(self.sampler, OneStep) and self.sampler.form == "x0"):
      raise ValueError(
        "a SiD student is made for one_step of form x0, not"
        f" {type(self.sampler).__name__}; pass sampler.kind=one_step"
      )

  @property
  def trees(self) -> Mapping[str, Tree]:
    return {
      "student": Tree(start="teacher"),
      "critic": Tree(start="teacher"),
    }

  @property
  def cycle(self) -> tuple[Turn, ...]:
    return ("critic",), ("student",)

  def passes(self, turn: Turn, num_steps: int, guided: bool) -> Passes:
    if turn == ("critic",):
      return Passes(forward=1, gradient=1)
    return Passes(gradient=1, input_gradient=1 + self.guidance.passes(guided))

  def loss(
    self, turn: Turn, trees: Trees, batch: Batch, key: Key, now: Now
  ) -> Loss:
    condition, shape = batch["condition"], batch["image"].shape
    key_x, key_s, key_eps, key_critic = jax.random.split(key, 4)
    x = self._image(trees["student"], condition, shape, key_x)
    process = self.denoiser.process
    draw = self.critic_draw if turn == ("critic",) else self.draw
    s = draw(key_s, shape[0], process.schedule)
    x_s = process.diffuse(x, jax.random.normal(key_eps, shape), s)
    critic = self.denoiser(
      trees["critic"],
      x_s,
      s,
      condition,
      key=key_critic if self.dropout and turn == ("critic",) else None,
    ).x0
    if turn == ("critic",):
      w = weight(self.weighting, process.schedule.logsnr(s))
      loss, mse = weighted_loss(x, critic, w)
      return jnp.mean(loss), {
        "critic/loss": summed(loss),
        "critic/x0_mse": summed(mse),
      }
    teacher = bind_teacher(
      self.denoiser, trees["teacher"], condition, self.guidance, now
    )(x_s, s).x0
    loss = identity_loss(x, teacher, critic, self.slack)
    if self.normalise:
      error = jnp.mean(jnp.abs(x - teacher), axis=(1, 2, 3))
      loss /= jax.lax.stop_gradient(jnp.maximum(error, LEAST_ERROR))
    gap = jnp.mean(jnp.square(teacher - critic), axis=(1, 2, 3))
    metrics = {"student/loss": summed(loss), "student/score_gap": summed(gap)}
    return jnp.mean(loss), metrics

  def _image(
    self,
    student: Params,
    condition: Condition,
    shape: tuple[int, ...],
    key: Key,
  ) -> Image:
    """Makes the student's images x from new noise."""
    key_noise, key_dropout = jax.random.split(key)
    noise = self.sampler.start(jax.random.normal(key_noise, shape), 1)
    t = per_example(self.sampler.time(1, 1), noise)
    key_dropout = key_dropout if self.dropout else None
    return self.denoiser(student, noise, t, condition, key=key_dropout).x0
