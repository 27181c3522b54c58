"""MeanFlow: a student of two times that learns average velocities from data.

Geng et al. 2025 (MeanFlow), and its successor of the same year (improved
MeanFlow, iMF), in our names (theirs on the right):

  t, s                       t, r: a jump goes from t to an earlier s
  u(x, t, s)                 u: the average velocity between s and t
  v                          v: the velocity of the path from x0 to eps
  guidance.weight w          omega / (1 - kappa) = 1 + w
  own_share                  kappa

sg stops the gradient. With the equations of diffusion/flow_maps.py:

  (1)  t and s are drawn; for a share of the batch s = t
  (2)  v of the data, x_t = alpha x0 + sigma eps; with guidance
       v <- omega v + kappa u(x, t, t) + (1 - omega - kappa) u_none(x, t, t),
       where u_none is told the null label
  (3)  g = cos(d) (v - u) - sin(d) (x + du/dp_t), the Eulerian identity, where
       du/dp_t is taken along v (MeanFlow) or along u(x, t, t) (iMF)
  (4)  L = e / sg(e + c)^p,  e = the sum of |u - sg(u + g)|^2 over an image

The mean of v at x_t is the velocity of the flow, so (3) is 0 on average at the
true flow map. At s = t, (4) is ordinary flow matching. iMF writes its loss as
the error of a velocity that u implies; its gradient is that of (4).

Unlike the paper, the coordinates are those of the circle, which exist for every
schedule. For rectified flow, the error of u is |(alpha, sigma)| times that of
the paper, between 0.7 and 1, and with p = 1 the gradient is the same. Unlike
the paper, iMF's network is not told the guidance, has one output, and its
tangent is its own u(x, t, t).
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import Batch, Condition, Image, Key, Params, Time
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.flow_maps import circle_velocity, eulerian
from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.prediction import Prediction
from diffdistill.diffusion.process import expand_like
from diffdistill.diffusion.timesteps import LogitNormal, TimeDraw, draw_pair
from diffdistill.diffusion.weighting import adaptive
from diffdistill.objectives.flow_map import check_two_times
from diffdistill.objectives.labels import check_label_dropout, hide_labels
from diffdistill.objectives.objective import (
  Loss,
  Now,
  Objective,
  Passes,
  Tree,
  Trees,
  Turn,
  summed,
)
from diffdistill.ranges import Range, Share, check_ranges
from diffdistill.sampling.sampler import Sampler

TANGENTS = ("data", "student")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanFlow(Objective):
  """Average velocities from data (MeanFlow and iMF, Geng et al. 2025).

  Args:
    denoiser: the architecture of the student, of two times.
    sampler: the sampler that the student is made for: flow_map.
    tangent: the direction of the derivative in (3): "data" for MeanFlow, or
      "student" for iMF.
    draw: the distribution of both times of a jump.
    other_draw: the distribution of the second drawn time, if it has its own.
    equal: the share of the batch with s = t. (MeanFlow's code: 0.75.)
    power, floor: p and c of (4). (MeanFlow's code: 1 and 0.01.)
    guidance: the guidance that the student's weights will have, (2).
    own_share: kappa of (2), in [0, 1).
    label_dropout: the share of labels that the network does not see, so that it
      also learns u without a label; 0 without a null label.
    dropout: whether the network has dropout in training.
    from_teacher: whether the student starts as a copy of a teacher; otherwise
      its weights are drawn at random, as in the paper.
  """

  denoiser: Denoiser
  sampler: Sampler
  tangent: str = "data"
  draw: TimeDraw = dataclasses.field(default_factory=LogitNormal)
  other_draw: TimeDraw | None = None
  equal: Share = 0.75
  power: Annotated[float, Range(0, 2)] = 1.0
  floor: Annotated[float, Range(0, 1000, "least")] = 0.01
  guidance: Guidance = dataclasses.field(default_factory=Guidance)
  own_share: Annotated[float, Range(0, 1, "most")] = 0.0
  label_dropout: Share = 0.0
  dropout: bool = False
  from_teacher: bool = True

  rounds: ClassVar[str] = "any"

  def __post_init__(self):
    check_ranges(self)
    check_two_times(self.denoiser, self.sampler, "a MeanFlow student")
    check_label_dropout(self.label_dropout, self.denoiser)
    if self.tangent not in TANGENTS:
      raise ValueError(
        f"tangent is {self.tangent!r}; pass one of {', '.join(TANGENTS)}"
      )
    if self.guidance.together:
      raise ValueError(
        "guidance.together is True, but a MeanFlow student needs no more than"
        " one pass without a label; pass together=False"
      )
    if self.own_share and self.guidance.weight == 0:
      raise ValueError(
        f"own_share is {self.own_share}, but guidance.weight is 0, so that it"
        " has no effect; pass a weight above 0"
      )

  @property
  def trees(self) -> Mapping[str, Tree]:
    return {"student": Tree(start="teacher" if self.from_teacher else "")}

  @property
  def needs(self) -> Mapping[str, str]:
    return {}

  @property
  def _guides(self) -> bool:
    return self.guidance.weight > 0

  def passes(self, turn: Turn, num_steps: int, guided: bool) -> Passes:
    own = self.tangent == "student" or self.own_share > 0
    return Passes(forward=own + self._guides, input_tangent=1, gradient=1)

  def loss(
    self, turn: Turn, trees: Trees, batch: Batch, key: Key, now: Now
  ) -> Loss:
    x0 = batch["image"]
    process, denoiser = self.denoiser.process, self.denoiser
    key_times, key_eps, key_label, key_dropout = jax.random.split(key, 4)
    condition, hidden = hide_labels(
      batch["condition"], denoiser.null_label, self.label_dropout, key_label
    )
    t, s = draw_pair(
      key_times,
      x0.shape[0],
      process.schedule,
      self.draw,
      self.other_draw,
      equal=self.equal,
    )
    eps = jax.random.normal(key_eps, x0.shape)
    x_t = process.diffuse(x0, eps, t)
    key_dropout = key_dropout if self.dropout else None
    student = trees["student"]
    fixed = jax.lax.stop_gradient(student)
    flow, along = self._flow(
      fixed, x_t, t, condition, hidden, Prediction(x0=x0, eps=eps)
    )
    exact = denoiser.exact.bind(fixed, condition, key=key_dropout)
    g = eulerian(process, exact, flow, x_t, t, s, along=along)
    prediction = denoiser(student, x_t, t, condition, s=s, key=key_dropout)
    u = circle_velocity(process, prediction, t)
    target = jax.lax.stop_gradient(u + g)
    square = jnp.sum(jnp.square(u - target), axis=(1, 2, 3))
    loss = adaptive(square, self.power, self.floor)
    mean = square / x0[0].size
    metrics = {"student/loss": summed(loss), "student/u_mse": summed(mean)}
    return jnp.mean(loss), metrics

  def _flow(
    self,
    params: Params,
    x_t: Image,
    t: Time,
    condition: Condition,
    hidden: Float[Array, " b"] | None,
    data: Prediction,
  ) -> tuple[Prediction, Prediction | None]:
    """The target velocity by (2), and the direction of the derivative if other.

    Velocities are given as predictions, which are linear in each other.

    Args:
      params: the student's weights, without gradient.
      x_t, t, condition: the noisy images, their times and their conditions.
      hidden: 1 for each image whose label is hidden, which is not guided; None
        if there is none.
      data: the x0 and eps of the noisy images.
    """
    own = flow = data
    if self.tangent == "student" or self.own_share:
      own = self.denoiser(params, x_t, t, condition)
    if self._guides:
      null = self.denoiser.check_guidance(self.guidance)
      untold = self.denoiser(
        params, x_t, t, Condition(label=jnp.full(t.shape, null))
      )
      low, high = self.guidance.interval
      inside = ((low <= t) & (t <= high)).astype(t.dtype)
      acts = expand_like(inside if hidden is None else inside - hidden, x_t) > 0
      kappa = self.own_share
      omega = (1 + self.guidance.weight) * (1 - kappa)
      flow = jax.tree.map(
        lambda v, c, u: jnp.where(
          acts, omega * v + kappa * c + (1 - omega - kappa) * u, v
        ),
        data,
        own,
        untold,
      )
    return flow, own if self.tangent == "student" else None
