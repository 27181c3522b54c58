"""sCM: consistency models in continuous time, by a derivative along the flow.

Lu & Song 2024, in our names (theirs on the right):

  u(x, t)                    sigma_d F_theta: the student's velocity
  v(x, t)                    dx_t/dt: the velocity of the teacher or the data
  p = angle(t)               t
  lv(t)                      -w_phi(t): a learned weighting, a tree of its own
  warmup                     H
  floor                      c

sg stops the gradient, and d = rotation(t, 0). With diffusion/flow_maps.py:

  (1)  the student's x0 is cos(d) x - sin(d) u, the flow map of u to s = 0
  (2)  g = cos(d) [cos(d) (v - u) - r sin(d) (x + du/dp)], r = min(1, step / H)
  (3)  g <- g / (|g| + c), where |g| is the norm over an image
  (4)  L = exp(-lv(t)) |u - sg(u + g)|^2 / (D tau) + lv(t),  tau = sigma/alpha,
       where D is the number of values of an image

(2) is the Eulerian identity at s = 0, times cos(d); for r = 0 it trains a
diffusion model, whose weights are a good start. du/dp is a derivative in
float32, whatever the dtype of the network. From data, v is that of the path
from x0 to eps, whose mean at x_t is the velocity of the flow. There (3) has a
bias if images have few values: where the mean of g is 0, that of g / (|g| + c)
is not. So pass floor=0, which turns (3) off, for data of a few dimensions.

Unlike the paper, the circle is that of unit variance, not of data with the
standard deviation 0.5, and lv is a sum of cosines.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import Batch, Condition, Image, Key, Time
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.flow_maps import circle_velocity, eulerian
from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.learned_weight import LearnedWeight
from diffdistill.diffusion.prediction import Prediction
from diffdistill.diffusion.process import expand_like
from diffdistill.diffusion.timesteps import Lognormal, TimeDraw
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
)
from diffdistill.ranges import Range, check_ranges
from diffdistill.sampling.one_step import OneStep
from diffdistill.sampling.renoising import Renoising
from diffdistill.sampling.sampler import Sampler

WEIGHTING = LearnedWeight()


def normalised(g: Image, floor: float) -> Image:
  """Computes equation (3); g itself if the floor is 0."""
  if floor == 0:
    return g
  # The derivative of a root is infinite at 0, but g has no gradient.
  norm = jnp.sqrt(jnp.sum(jnp.square(g), axis=(1, 2, 3), keepdims=True))
  return g / (norm + floor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinuousConsistency(Objective):
  """The parts that distillation and training in continuous time share.

  Args:
    denoiser: the architecture of the student, and of the teacher if any.
    sampler: the sampler that the student is made for: renoising or one_step.
    draw: the distribution of t. The default is that of CIFAR-10 in Lu & Song
      2024.
    warmup: H of equation (2), in updates; 0 for none.
    floor: c of equation (3); 0 leaves g as it is.
    dropout: whether the student has dropout, with the same units dropped in u
      and in du/dp.
  """

  denoiser: Denoiser
  sampler: Sampler
  draw: TimeDraw = dataclasses.field(
    default_factory=lambda: Lognormal(mean=-1.0, std=1.4)
  )
  warmup: Annotated[int, Range(0, 10**9)] = 10_000
  floor: Annotated[float, Range(0, 1000)] = 0.1
  dropout: bool = False

  rounds: ClassVar[str] = "any"

  def __post_init__(self):
    check_ranges(self)
    renoises = isinstance(self.sampler, Renoising)
    jumps = isinstance(self.sampler, OneStep) and self.sampler.form == "x0"
    if not (renoises or jumps):
      raise ValueError(
        "a consistency student is made for renoising, or for one_step of form"
        f" x0, not {type(self.sampler).__name__}; pass sampler.kind=renoising"
      )

  @property
  def trees(self) -> Mapping[str, Tree]:
    return {
      "student": Tree(start=self._start),
      "weighting": Tree(network=WEIGHTING),
    }

  @property
  def _start(self) -> str:
    return "teacher"

  @abc.abstractmethod
  def _flow(
    self,
    trees: Trees,
    condition: Condition,
    x_t: Image,
    data: Prediction,
    t: Time,
    now: Now,
  ) -> Prediction:
    """The prediction whose velocity is v; `data` has the x0 and eps of x_t."""

  def loss(
    self, turn: Turn, trees: Trees, batch: Batch, key: Key, now: Now
  ) -> Loss:
    x0, condition = batch["image"], batch["condition"]
    process, student = self.denoiser.process, trees["student"]
    key_t, key_eps, key_dropout = jax.random.split(key, 3)
    t = self.draw(key_t, x0.shape[0], process.schedule)
    eps = jax.random.normal(key_eps, x0.shape)
    x_t, zero = process.diffuse(x0, eps, t), jnp.zeros_like(t)
    data = Prediction(x0=x0, eps=eps)
    key_dropout = key_dropout if self.dropout else None
    prediction = self.denoiser.bind(student, condition, key=key_dropout)(
      x_t, t, zero
    )
    u = circle_velocity(process, prediction, t)
    exact = self.denoiser.exact.bind(
      jax.lax.stop_gradient(student), condition, key=key_dropout
    )
    flow = self._flow(trees, condition, x_t, data, t, now)
    g = eulerian(process, exact, flow, x_t, t, zero, self._share(now))
    g = expand_like(jnp.cos(process.schedule.rotation(t, zero)), x_t) * g
    target = jax.lax.stop_gradient(u + normalised(g, self.floor))
    error = jnp.mean(jnp.square(u - target), axis=(1, 2, 3))
    logsnr = process.schedule.logsnr(t)
    log_variance = WEIGHTING.apply(trees["weighting"], logsnr)
    # 1 / tau is the square root of the signal-to-noise ratio.
    weight = jnp.exp(0.5 * logsnr - log_variance)
    loss = weight * error + log_variance
    metrics = {
      "student/loss": summed(loss),
      "student/tangent_mse": summed(jnp.mean(jnp.square(g), axis=(1, 2, 3))),
      "weighting/log_variance": summed(log_variance),
    }
    return jnp.mean(loss), metrics

  def _share(self, now: Now) -> float | Float[Array, ""]:
    """Computes r of equation (2)."""
    if self.warmup == 0:
      return 1.0
    return jnp.minimum(now.step.astype(jnp.float32) / self.warmup, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinuousDistillation(ContinuousConsistency):
  """Continuous consistency distillation, sCD (Lu & Song 2024).

  Args:
    denoiser, sampler, draw, warmup, floor, dropout: see
      `ContinuousConsistency`.
    guidance: the guidance of the teacher.
  """

  guidance: Guidance = dataclasses.field(default_factory=Guidance)

  def passes(self, turn: Turn, num_steps: int, guided: bool) -> Passes:
    teacher = self.guidance.passes(guided)
    return Passes(forward=teacher, input_tangent=1, gradient=1)

  def _flow(
    self,
    trees: Trees,
    condition: Condition,
    x_t: Image,
    data: Prediction,
    t: Time,
    now: Now,
  ) -> Prediction:
    teacher = bind_teacher(
      self.denoiser, trees["teacher"], condition, self.guidance, now
    )
    return teacher(x_t, t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinuousTraining(ContinuousConsistency):
  """Continuous consistency training from data, sCT (Lu & Song 2024).

  Args:
    denoiser, sampler, draw, warmup, floor, dropout: see
      `ContinuousConsistency`.
    from_teacher: whether the student starts as a copy of a teacher; otherwise
      its weights are drawn at random.
  """

  from_teacher: bool = True

  @property
  def _start(self) -> str:
    return "teacher" if self.from_teacher else ""

  @property
  def needs(self) -> Mapping[str, str]:
    return {}

  def passes(self, turn: Turn, num_steps: int, guided: bool) -> Passes:
    return Passes(input_tangent=1, gradient=1)

  def _flow(
    self,
    trees: Trees,
    condition: Condition,
    x_t: Image,
    data: Prediction,
    t: Time,
    now: Now,
  ) -> Prediction:
    return data
