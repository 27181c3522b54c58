"""Moment matching: a student with the conditional means of its teacher.

Salimans, Mensink, Heek & Hoogeboom 2024, in our names (theirs on the right):

  x_t, t                     z_t, t: real data with noise; the student reads it
  x_s, s                     z_s, s: at which the moments are compared
  x0                         x~ = g_eta(z_t), the student's clean image
  teacher, auxiliary         g_theta(z_s), g_phi(z_s)
  num_steps                  k, the student's steps
  second_moments             v of Lambda = 1 / (sqrt(v) + 1e-8): Adam's second
                             moments of the teacher's training, bias-corrected

All losses share one draw. sg stops the gradient, so that it flows through x0
alone:

  (1)  0 <= s <= t <= 1, t - s <= 1/k:  continuous, s ~ U[0, 1] and
       t = min(s + U[0, 1/k], 1);  or grid, t = i/k with i ~ U{1, ..., k} and
       s = t - U[0, 1/k]
  (2)  x_t ~ q(x_t | data), x0 = student(x_t, t), x_s ~ q(x_s | x_t, sg x0)

Alternating (Algorithm 2), w = w(logsnr(s)):

  (3)  L(auxiliary) = w { ||sg x0 - auxiliary(x_s)||^2
                          + ||sg teacher(x_s) - auxiliary(x_s)||^2 }
  (4)  L(student)   = w x0 . sg[auxiliary(x_s) - teacher(x_s)]

The best auxiliary is the midpoint of E[x0 | x_s] and the teacher. Hence

  (5)  w ||E[x0 | x_s] - teacher||^2
       = E 2 w (x0 - teacher) . (auxiliary - teacher)

The right side is linear in x0, so its estimate has no bias. It is the metric
"student/moment_gap".

In parameter space (Algorithm 3), with theta the teacher's weights and J the
derivative of teacher(x_s) by theta:

  (6)  m = E grad_theta w ||x0 - teacher(x_s)||^2, which is 0 for real data;
       the objective is 1/2 m^T Lambda m with a fixed diagonal Lambda
  (7)  L(student) = w x0 . sg[-2 J Lambda m'] with m' of another half batch
  (8)  m^T Lambda m' = E w (x0 - teacher) . (-2 J Lambda m'): "moment_gap"

Unlike the paper, squares and products are means over pixels, not sums, as in
every other objective here. Unlike the paper, t can be drawn on the sampler's
grid: an auxiliary that sees s but not t constrains a mixture of all t above s,
and with few steps the mixture can be right where the grid's times are wrong.
Unlike the paper, whose w is an input, w has a default, "clipped_snr". No image
is clipped.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import (
  Batch,
  Image,
  Key,
  Params,
  Scalar,
  Time,
)
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.guidance import Guidance
from diffdistill.objectives.moment_draws import Draw, check_draws, draw, product
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
from diffdistill.objectives.sensitivity import check_sensitivity
from diffdistill.sampling.sampler import Sampler

PRECONDITIONERS = ("adam", "identity")
ADAM_EPS = 1e-8  # The eps in Lambda = 1 / (sqrt(second moment) + eps)

# A function that computes the teacher's x0 from (weights, x_s, s).
Teacher = Callable[[Params, Image, Time], Image]


def moments(teacher: Teacher, params: Params, drawn: Draw) -> Params:
  """Computes m of equation (6): the gradient in the teacher's weights."""

  def loss(params: Params) -> Scalar:
    x0 = teacher(params, drawn.x_s, drawn.s)
    return jnp.mean(weighted_loss(drawn.x0, x0, drawn.w)[0])

  return jax.grad(loss)(params)


def precondition(gradient: Params, second_moments: Params | None) -> Params:
  """Computes Lambda m: m over Adam's scale, or m itself without moments."""
  if second_moments is None:
    return gradient
  return jax.tree.map(
    lambda m, v: m / (jnp.sqrt(v) + ADAM_EPS), gradient, second_moments
  )


def moment_loss(
  teacher: Teacher, params: Params, direction: Params, drawn: Draw
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
  """Computes equations (7) and (8) per example: (loss, moment gap).

  Args:
    teacher, params: the teacher and its weights.
    direction: Lambda m' of other draws.
    drawn: the draws; the loss is differentiated in their x0.
  """
  x0, along = jax.jvp(
    lambda params: teacher(params, drawn.x_s, drawn.s), (params,), (direction,)
  )
  push = jax.lax.stop_gradient(-2 * along)
  loss = drawn.w * product(drawn.x0, push)
  return loss, drawn.w * product(drawn.x0 - x0, push)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MomentMatching(Objective):
  """Matches moments in turns (Salimans et al. 2024, Algorithm 2).

  The auxiliary learns on even updates, the student on odd ones.

  Args:
    denoiser: the architecture of teacher, student and auxiliary. Its output may
      not be eps or score, see sensitivity.py.
    sampler: the sampler that the student is made for: Ancestral, with noise 0
      on a uniform grid.
    weighting: a name of `diffusion.weighting`, at logsnr(s).
    times: "continuous" or "grid", see equation (1).
    guidance: the guidance of the teacher.
    dropout: whether the networks have dropout. The auxiliary and the teacher
      drop the same units, so that dropout adds no noise to their difference.
  """

  denoiser: Denoiser
  sampler: Sampler
  weighting: str = "clipped_snr"
  times: str = "continuous"
  guidance: Guidance = dataclasses.field(default_factory=Guidance)
  dropout: bool = False

  rounds: ClassVar[str] = "each"

  def __post_init__(self):
    check_sensitivity(self.denoiser)
    check_draws(self.sampler, self.weighting, self.times)

  @property
  def trees(self) -> Mapping[str, Tree]:
    return {
      "student": Tree(start="teacher"),
      "auxiliary": Tree(start="teacher"),
    }

  @property
  def cycle(self) -> tuple[Turn, ...]:
    return ("auxiliary",), ("student",)

  def passes(self, turn: Turn, num_steps: int, guided: bool) -> Passes:
    return Passes(forward=1 + self.guidance.passes(guided), gradient=1)

  def loss(
    self, turn: Turn, trees: Trees, batch: Batch, key: Key, now: Now
  ) -> Loss:
    condition = batch["condition"]
    key_draw, key_shared = jax.random.split(key)
    key_shared = key_shared if self.dropout else None
    drawn = draw(
      self.denoiser,
      trees["student"],
      batch,
      self.times,
      self.weighting,
      now.num_steps,
      key_draw,
      self.dropout,
    )
    teacher = bind_teacher(
      self.denoiser,
      trees["teacher"],
      condition,
      self.guidance,
      now,
      key_shared,
    )(drawn.x_s, drawn.s).x0
    auxiliary = self.denoiser(
      trees["auxiliary"], drawn.x_s, drawn.s, condition, key=key_shared
    ).x0
    if turn == ("auxiliary",):
      to_student, _ = weighted_loss(drawn.x0, auxiliary, drawn.w)
      to_teacher, _ = weighted_loss(teacher, auxiliary, drawn.w)
      loss = to_student + to_teacher
      return jnp.mean(loss), {"auxiliary/loss": summed(loss)}
    push = jax.lax.stop_gradient(auxiliary - teacher)
    loss = drawn.w * product(drawn.x0, push)
    gap = 2 * drawn.w * product(drawn.x0 - teacher, push)
    metrics = {"student/loss": summed(loss), "student/moment_gap": summed(gap)}
    return jnp.mean(loss), metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterMomentMatching(Objective):
  """Matches moments in parameter space (Salimans et al. 2024, Algorithm 3).

  It needs no auxiliary: the moments are gradients of the teacher's own loss,
  which are 0 on real data. One half of a batch gives the direction Lambda m',
  and the other half is differentiated along it.

  Args:
    denoiser: the architecture of teacher and student. Its output may not be eps
      or score, see sensitivity.py.
    sampler: the sampler that the student is made for: Ancestral, with noise 0
      on a uniform grid.
    weighting: a name of `diffusion.weighting`, at logsnr(s).
    times: "continuous" or "grid", see equation (1).
    guidance: the guidance of the teacher.
    preconditioner: Lambda, "adam" or "identity". "adam" is
      1 / (sqrt(v) + 1e-8) with the teacher's second moments v, which must be
      one of the frozen trees.
    dropout: whether the networks have dropout.
  """

  denoiser: Denoiser
  sampler: Sampler
  weighting: str = "clipped_snr"
  times: str = "continuous"
  guidance: Guidance = dataclasses.field(default_factory=Guidance)
  preconditioner: str = "adam"
  dropout: bool = False

  rounds: ClassVar[str] = "each"

  def __post_init__(self):
    check_sensitivity(self.denoiser)
    check_draws(self.sampler, self.weighting, self.times)
    if self.preconditioner not in PRECONDITIONERS:
      raise ValueError(
        f"preconditioner is {self.preconditioner!r}; pass one of"
        f" {', '.join(PRECONDITIONERS)}"
      )

  @property
  def needs(self) -> Mapping[str, str]:
    if self.preconditioner == "adam":
      return {"teacher": "denoiser", "second_moments": "moments"}
    return {"teacher": "denoiser"}

  def passes(self, turn: Turn, num_steps: int, guided: bool) -> Passes:
    # One half of the batch costs a gradient of the student and a tangent of
    # the teacher. The other half costs a forward pass of the student and a
    # gradient of the teacher.
    teacher = 0.5 * self.guidance.passes(guided)
    return Passes(forward=0.5, gradient=0.5 + teacher, tangent=teacher)

  def loss(
    self, turn: Turn, trees: Trees, batch: Batch, key: Key, now: Now
  ) -> Loss:
    batch_size = batch["image"].shape[0]
    if batch_size % 2:
      raise ValueError(
        f"batch size is {batch_size}; pass an even one, whose halves are"
        " independent draws"
      )
    # Take every other row, so that each half is spread over all devices.
    halves = [jax.tree.map(lambda v, i=i: v[i::2], dict(batch)) for i in (0, 1)]
    key_a, key_b = jax.random.split(key)
    drawn, teacher = self._half(trees["student"], halves[0], key_a, now)
    other, other_teacher = self._half(
      jax.lax.stop_gradient(trees["student"]), halves[1], key_b, now
    )
    direction = precondition(
      moments(other_teacher, trees["teacher"], other),
      trees["second_moments"] if self.preconditioner == "adam" else None,
    )
    loss, gap = moment_loss(teacher, trees["teacher"], direction, drawn)
    metrics = {"student/loss": summed(loss), "student/moment_gap": summed(gap)}
    return jnp.mean(loss), metrics

  def _half(
    self, student: Params, batch: Batch, key: Key, now: Now
  ) -> tuple[Draw, Teacher]:
    """Makes the draws for half a batch, and binds their conditions."""
    key_draw, key_teacher = jax.random.split(key)
    drawn = draw(
      self.denoiser,
      student,
      batch,
      self.times,
      self.weighting,
      now.num_steps,
      key_draw,
      self.dropout,
    )

    def teacher(params: Params, x_s: Image, s: Time) -> Image:
      denoise = bind_teacher(
        self.denoiser,
        params,
        batch["condition"],
        self.guidance,
        now,
        key_teacher if self.dropout else None,
      )
      return denoise(x_s, s).x0

    return drawn, teacher
