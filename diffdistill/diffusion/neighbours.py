"""How consistency models draw two neighbouring times s < t on a trajectory.

tau = sigma/alpha is the noise level, p the progress of the training in [0, 1).

Grid (Song & Dhariwal 2023, "iCT"), for times t_0 = 0 < t_1 < ... < t_N:

  (1)  N = min(first 2^floor(p (log2(last / first) + 1)), last)
  (2)  (t, s) = (t_j, t_{j-1}), with the chance of a draw between t_{j-1} and
       t_j, among the draws that are within the grid; or all equally likely
       (Song et al. 2023)

Ratio (Geng et al. 2024, "ECT"), for t of any draw:

  (3)  tau_s = tau_t max(0, 1 - g (1 + k sigmoid(-b tau_t)))
  (4)  g = max(q^-(i + 1), least), i = floor(p stages)

s = 0 means the clean image itself, as in every last step of a sampler.
"""

import abc
import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffdistill.arrays import Key, Scalar, Time
from diffdistill.diffusion.schedule import Schedule
from diffdistill.diffusion.timesteps import (
  KARRAS_RHO,
  KARRAS_SIGMAS,
  KARRAS_T_MIN,
  Lognormal,
  TimeDraw,
  fraction,
)
from diffdistill.ranges import Range, Share, Steps, check_ranges

CURVES = ("karras", "uniform")
# A time that fewer than this share of the draws exceed counts as the noisiest.
RARE = 1e-4


def noise_level(schedule: Schedule, t: Time) -> Time:
  """sigma/alpha at t; 0 at t = 0, which means the clean image here."""
  return jnp.where(t > 0, schedule.tau(t), 0.0)


# log(sigma/alpha) ~ N(-1.1, 2.0^2): Song & Dhariwal 2023, section 3.5.
DRAW = Lognormal(mean=-1.1, std=2.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbours(abc.ABC):
  """A distribution of pairs (t, s) of neighbouring times."""

  def __post_init__(self):
    check_ranges(self)

  @abc.abstractmethod
  def __call__(
    self, key: Key, batch_size: int, schedule: Schedule, progress: Scalar
  ) -> tuple[Time, Time]:
    """Draws one pair (t, s) for each example.

    Args:
      key: the key of the draw.
      batch_size: the number of pairs.
      schedule: gives the noise level at each time.
      progress: the share of the training that is done; may be traced.
    """

  @abc.abstractmethod
  def noisiest(self, schedule: Schedule) -> Scalar:
    """The noisiest time at which the student is trained."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnGrid(Neighbours):
  """Neighbours on a grid whose steps double during training, equation (1).

  Args:
    first: the number of steps of the grid at first.
    last: the number of steps at the end.
    curve: "karras": the grid of Karras et al. 2022, Eq. 5, in sigma/alpha from
      0.002 to 80, or to the schedule's ends if they are nearer. Unlike the
      paper, its cleanest time is 0, the image itself. "uniform": equal steps of
      t from 0 to 1.
  """

  first: Steps = 10
  last: Steps = 1280
  curve: str = "karras"

  def __post_init__(self):
    super().__post_init__()
    if self.curve not in CURVES:
      raise ValueError(
        f"curve is {self.curve!r}; pass one of {', '.join(CURVES)}"
      )
    if self.first > self.last:
      raise ValueError(
        f"first is {self.first} and last is {self.last}; pass first <= last"
      )

  def __call__(
    self, key: Key, batch_size: int, schedule: Schedule, progress: Scalar
  ) -> tuple[Time, Time]:
    u = self._draw(jax.random.uniform(key, (batch_size,)), schedule)
    steps = self.steps(progress)
    j = jnp.clip(jnp.ceil(u * steps), 1, steps).astype(jnp.int32)
    t, s = (self.time(fraction(i, steps), schedule) for i in (j, j - 1))
    return t, s

  @abc.abstractmethod
  def _draw(self, u: Time, schedule: Schedule) -> Time:
    """Draws a share of the grid for each u of U[0, 1)."""

  def steps(self, progress: Scalar) -> Int[Array, ""]:
    """The number of steps of the grid: equation (1)."""
    parts = math.log2(self.last / self.first) + 1
    doubled = self.first * jnp.exp2(jnp.floor(progress * parts))
    return jnp.minimum(jnp.round(doubled), self.last).astype(jnp.int32)

  def time(self, u: Float[Array, " n"], schedule: Schedule) -> Time:
    """The time at a share u of the grid; exactly 0 at u = 0."""
    if self.curve == "uniform":
      return u
    low, high = _roots(schedule)
    tau = (low + u * (high - low)) ** KARRAS_RHO
    t = jnp.maximum(schedule.time(-2 * jnp.log(tau)), KARRAS_T_MIN)
    return jnp.where(u > 0, t, 0.0)

  def place(self, t: Time, schedule: Schedule) -> Time:
    """The share of the grid at a time; the inverse of `time`."""
    if self.curve == "uniform":
      return t
    low, high = _roots(schedule)
    root = jnp.exp(-0.5 / KARRAS_RHO * schedule.logsnr(t))
    return (root - low) / (high - low)

  def noisiest(self, schedule: Schedule) -> Scalar:
    return self.time(jnp.ones(1), schedule)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvenNeighbours(OnGrid):
  """Neighbours on a grid whose steps are equally likely (Song et al. 2023).

  Args:
    first, last, curve: see `OnGrid`.
  """

  def _draw(self, u: Time, schedule: Schedule) -> Time:
    return u


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridNeighbours(OnGrid):
  """Neighbours on a grid at times of a given draw (iCT, Eqs. 1 and 2).

  Song & Dhariwal 2023, sections 3.4 and 3.5.

  Args:
    first, last, curve: see `OnGrid`.
    draw: the distribution of t.
  """

  draw: TimeDraw = DRAW

  def _draw(self, u: Time, schedule: Schedule) -> Time:
    # Draws outside the grid are left out by a change of the quantiles.
    ends = self.time(jnp.array([0.0, 1.0]), schedule)
    low, high = self.draw.share(ends, schedule)
    t = self.draw.quantile(low + u * (high - low), schedule)
    return self.place(t, schedule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RatioNeighbours(Neighbours):
  """Neighbours whose ratio of noise levels nears 1 in stages (ECT, Eqs. 3, 4).

  Geng et al. 2024. The first stage is close to the training of a denoiser:
  with the defaults s = 0 for sigma/alpha up to 1.9.

  Args:
    draw: the distribution of t.
    q: the factor by which the gap shrinks from one stage to the next.
    stages: the number of stages, all of the same length.
    k, b: the gap is wider by 1 + k sigmoid(-b tau).
    least: the least g of equation (4).
  """

  draw: TimeDraw = DRAW
  q: Annotated[float, Range(1, 10**6, "least")] = 2.0
  stages: Annotated[int, Range(1, 10**4)] = 8
  k: Annotated[float, Range(0, 1000)] = 8.0
  b: Annotated[float, Range(0, 1000)] = 1.0
  least: Share = 0.001

  def __call__(
    self, key: Key, batch_size: int, schedule: Schedule, progress: Scalar
  ) -> tuple[Time, Time]:
    t = self.draw(key, batch_size, schedule)
    return t, self.earlier(t, schedule, progress)

  def earlier(self, t: Time, schedule: Schedule, progress: Scalar) -> Time:
    """The time s of equation (3)."""
    stage = jnp.floor(progress * self.stages)
    gap = jnp.maximum(self.q ** -(stage + 1), self.least)
    tau = schedule.tau(t)
    ratio = 1 - gap * (1 + self.k * jax.nn.sigmoid(-self.b * tau))
    lower = tau * jnp.maximum(ratio, jnp.finfo(tau.dtype).tiny)
    s = schedule.time(-2 * jnp.log(lower))
    return jnp.where(ratio > 0, jnp.minimum(s, t), 0.0)

  def noisiest(self, schedule: Schedule) -> Scalar:
    return self.draw.quantile(jnp.full(1, 1 - RARE), schedule)[0]


NEIGHBOURS = {
  "even": EvenNeighbours,
  "grid": GridNeighbours,
  "ratio": RatioNeighbours,
}


def _roots(schedule: Schedule) -> tuple[Scalar, Scalar]:
  """The ends of the karras grid within the schedule, to the power 1/rho."""
  ends = schedule.tau(jnp.array([0.0, 1.0]))
  low = jnp.maximum(ends[0], KARRAS_SIGMAS[0])
  high = jnp.minimum(ends[1], KARRAS_SIGMAS[1])
  return low ** (1 / KARRAS_RHO), high ** (1 / KARRAS_RHO)
