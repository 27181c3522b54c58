"""Flow maps: a student of two times that jumps along its teacher's flow.

Boffi et al. 2024 and Sabour et al. 2025 (Align Your Flow) distil by the
Lagrangian and the Eulerian identity, Frans et al. 2024 (shortcut models) by the
semigroup. In our names (theirs on the right):

  t, s                       t, s: a jump goes from t to an earlier s
  X(x_t, t, s)               f_theta(x_t, t, s): the student's flow map
  u(x, t, s)                 the average velocity of X, see diffusion/flow_maps
  v(x, t)                    the teacher's velocity on the circle

sg stops the gradient. With the equations of diffusion/flow_maps.py:

  (1)  t and s are drawn; for a share of the batch s = t
  (2)  eulerian:    L = |u - sg(u + g)|^2,  g the left side of its equation (2)
  (3)  lagrangian:  L = |dX/dp_s - sg v(X, s)|^2,  its equation (3)
  (4)  semigroup:   L = |u - sg u'|^2,  u' the jump that equals two jumps of the
       student, by its equation (4), with the middle at (t + s) / 2

At s = t, all of them are |u(x, t, t) - v(x, t)|^2, the ordinary loss of a
diffusion model with the teacher's velocity as target. (In (4), u' does not
depend on the teacher there, so v takes its place.)

The student's network has two times; it starts as a copy of the teacher, whose
branch of the second time is zero. No network has dropout. Unlike the paper, the
coordinates are those of the circle for every schedule, and losses have no
weight beside these coordinates. Unlike the paper, the semigroup's target is the
student itself and not its average, s = t learns from the teacher and not from
data, and t and s are continuous.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from diffdistill.arrays import Batch, Key
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.flow_maps import (
  circle_velocity,
  eulerian,
  lagrangian,
  semigroup,
)
from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.prediction import Model
from diffdistill.diffusion.process import expand_like
from diffdistill.diffusion.timesteps import TimeDraw, Uniform, draw_pair
from diffdistill.objectives.objective import (
  Loss,
  Now,
  Objective,
  Passes,
  Trees,
  Turn,
  bind_teacher,
  summed,
)
from diffdistill.ranges import Share, check_ranges
from diffdistill.sampling.flow_map import FlowMap
from diffdistill.sampling.sampler import Sampler

IDENTITIES = ("lagrangian", "eulerian", "semigroup")


def check_two_times(denoiser: Denoiser, sampler: Sampler, what: str) -> None:
  """Refuses a network of one time, and a sampler that does not jump.

  Raises:
    ValueError: if the network has one time, or the sampler is not flow_map.
  """
  if not denoiser.network.two_times:
    raise ValueError(
      f"{what} has a network of two times, but model.network has one; pass"
      " model.network.two_times=True"
    )
  if not isinstance(sampler, FlowMap):
    raise ValueError(
      f"{what} is made for flow_map, not {type(sampler).__name__}; pass"
      " sampler.kind=flow_map"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMapDistillation(Objective):
  """Distillation of a teacher's flow map (Boffi et al. 2024).

  Args:
    denoiser: the architecture of teacher and student, of two times.
    sampler: the sampler that the student is made for: flow_map.
    identity: "lagrangian", "eulerian" or "semigroup", equations (2) to (4).
    draw: the distribution of both times of a jump.
    equal: the share of the batch with s = t.
    guidance: the guidance of the teacher.
  """

  denoiser: Denoiser
  sampler: Sampler
  identity: str = "lagrangian"
  draw: TimeDraw = dataclasses.field(default_factory=Uniform)
  equal: Share = 0.25
  guidance: Guidance = dataclasses.field(default_factory=Guidance)

  rounds: ClassVar[str] = "any"

  def __post_init__(self):
    check_ranges(self)
    check_two_times(self.denoiser, self.sampler, "a flow map")
    if self.identity not in IDENTITIES:
      raise ValueError(
        f"identity is {self.identity!r}; pass one of {', '.join(IDENTITIES)}"
      )
    if self.identity == "semigroup" and self.equal == 0:
      raise ValueError(
        "equal is 0, but the semigroup learns from the teacher only at s = t;"
        " pass a share above 0"
      )

  def passes(self, turn: Turn, num_steps: int, guided: bool) -> Passes:
    teacher = self.guidance.passes(guided)
    return {
      "lagrangian": Passes(forward=teacher, tangent_gradient=1),
      "eulerian": Passes(forward=teacher, input_tangent=1, gradient=1),
      "semigroup": Passes(forward=teacher + 2, gradient=1),
    }[self.identity]

  def loss(
    self, turn: Turn, trees: Trees, batch: Batch, key: Key, now: Now
  ) -> Loss:
    x0, condition = batch["image"], batch["condition"]
    process, denoiser = self.denoiser.process, self.denoiser
    key_times, key_eps = jax.random.split(key)
    t, s = draw_pair(
      key_times, x0.shape[0], process.schedule, self.draw, equal=self.equal
    )
    x_t = process.diffuse(x0, jax.random.normal(key_eps, x0.shape), t)
    teacher = bind_teacher(
      denoiser, trees["teacher"], condition, self.guidance, now
    )
    student = trees["student"]
    fixed = jax.lax.stop_gradient(student)
    if self.identity == "lagrangian":
      exact = denoiser.exact.bind(student, condition)
      x_s, found = lagrangian(process, exact, x_t, t, s)
      x_s = jax.lax.stop_gradient(x_s)
      target = circle_velocity(process, teacher(x_s, s), s)
    else:
      prediction = denoiser(student, x_t, t, condition, s=s)
      found = circle_velocity(process, prediction, t)
      flow = teacher(x_t, t)
      if self.identity == "eulerian":
        exact = denoiser.exact.bind(fixed, condition)
        target = found + eulerian(process, exact, flow, x_t, t, s)
      else:
        model: Model = denoiser.bind(fixed, condition)
        jump = semigroup(process, model, x_t, t, (t + s) / 2, s)
        moved = expand_like(t - s, x_t) > 0
        target = jnp.where(moved, jump, circle_velocity(process, flow, t))
    error = jnp.mean(
      jnp.square(found - jax.lax.stop_gradient(target)), axis=(1, 2, 3)
    )
    return jnp.mean(error), {"student/loss": summed(error)}
