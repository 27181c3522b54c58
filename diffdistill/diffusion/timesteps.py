"""How training draws t, and which grids of t samplers use.

With u ~ U[0, 1) and Phi the normal distribution function, the draws are

  uniform       t = u
  power         t = u^power
  logit_normal  t = sigmoid(mean + std Phi^-1(u))
  lognormal     log(sigma/alpha) = mean + std Phi^-1(u)
  karras        sigma/alpha = c(least + (most - least) u)

where c is the curve of Karras et al. 2022, Eq. 5, from 0.002 to 80.
A grid of num_steps steps visits grid(num_steps) > ... > grid(1) > grid(0) = 0.
num_steps may be traced, so that one executable serves every number of steps.
"""

import abc
import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from diffdistill.arrays import Key, Scalar, Time
from diffdistill.diffusion.schedule import Schedule
from diffdistill.ranges import Range, check_ranges

GRIDS = ("uniform", "quadratic", "karras")
# These grids visit whole indices of a discrete schedule; index 0 is the
# cleanest.
INDEX_GRIDS = ("uniform_indices", "quadratic_indices")
KARRAS_RHO = 7.0  # Karras et al. 2022, Table 1
KARRAS_SIGMAS = (0.002, 80.0)  # Karras et al. 2022, Table 1
KARRAS_T_MIN = 1e-6  # this time has the same sigma as 0, but is not 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeDraw(abc.ABC):
  """A distribution of the times at which a network is trained."""

  def __post_init__(self):
    check_ranges(self)

  def __call__(self, key: Key, batch_size: int, schedule: Schedule) -> Time:
    """Draws one time for each example."""
    return self.quantile(jax.random.uniform(key, (batch_size,)), schedule)

  @abc.abstractmethod
  def quantile(self, u: Time, schedule: Schedule) -> Time:
    """The time below which a share u of the draws lies."""

  @abc.abstractmethod
  def share(self, t: Time, schedule: Schedule) -> Time:
    """The share of the draws that lie below t; the inverse of `quantile`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform(TimeDraw):
  """t ~ U[0, 1): Salimans & Ho 2022, Algorithm 1."""

  def quantile(self, u: Time, schedule: Schedule) -> Time:
    return u

  def share(self, t: Time, schedule: Schedule) -> Time:
    return t


@dataclasses.dataclass(frozen=True, kw_only=True)
class Power(TimeDraw):
  """t = u^power: with a power above 1, more times are drawn near the data."""

  power: Annotated[float, Range(0.01, 100)] = 2.0

  def quantile(self, u: Time, schedule: Schedule) -> Time:
    return u**self.power

  def share(self, t: Time, schedule: Schedule) -> Time:
    return t ** (1 / self.power)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitNormal(TimeDraw):
  """log(t / (1 - t)) is normal; the defaults are MeanFlow's for ImageNet.

  Geng et al. 2025 (code): mean -0.4 and standard deviation 1.
  """

  mean: Annotated[float, Range(-20, 20)] = -0.4
  std: Annotated[float, Range(0.01, 20)] = 1.0

  def quantile(self, u: Time, schedule: Schedule) -> Time:
    return jax.nn.sigmoid(_normal_quantile(u, self.mean, self.std))

  def share(self, t: Time, schedule: Schedule) -> Time:
    return _normal_share(jax.scipy.special.logit(t), self.mean, self.std)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lognormal(TimeDraw):
  """sigma/alpha is lognormal for every schedule (Karras et al. 2022).

  The defaults are P_mean and P_std of Table 1 of Karras et al. 2022. Noise
  levels outside the schedule are replaced by its ends.
  """

  mean: Annotated[float, Range(-20, 20)] = -1.2
  std: Annotated[float, Range(0.01, 20)] = 1.2

  def quantile(self, u: Time, schedule: Schedule) -> Time:
    return schedule.time(-2 * _normal_quantile(u, self.mean, self.std))

  def share(self, t: Time, schedule: Schedule) -> Time:
    return _normal_share(-0.5 * schedule.logsnr(t), self.mean, self.std)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KarrasCurve(TimeDraw):
  """sigma/alpha on the curve of Karras et al. 2022, uniform along the curve.

  Noise levels outside the schedule are replaced by its ends.

  Args:
    least, most: the part of the curve that is drawn; 0 is its clean end, at
      0.002, and 1 its noisy end, at 80.
  """

  least: Annotated[float, Range(0, 1)] = 0.0
  most: Annotated[float, Range(0, 1)] = 1.0

  def __post_init__(self):
    super().__post_init__()
    if self.least >= self.most:
      raise ValueError(
        f"least is {self.least}, but most is {self.most}; pass a larger most"
      )

  def quantile(self, u: Time, schedule: Schedule) -> Time:
    sigma = _karras_curve(self.least + u * (self.most - self.least))
    return schedule.time(-2 * jnp.log(sigma))

  def share(self, t: Time, schedule: Schedule) -> Time:
    low, high = (sigma ** (1 / KARRAS_RHO) for sigma in KARRAS_SIGMAS)
    place = (schedule.tau(t) ** (1 / KARRAS_RHO) - low) / (high - low)
    return jnp.clip((place - self.least) / (self.most - self.least), 0.0, 1.0)


DRAWS = {
  "uniform": Uniform,
  "power": Power,
  "logit_normal": LogitNormal,
  "lognormal": Lognormal,
  "karras": KarrasCurve,
}


def draw_pair(
  key: Key,
  batch_size: int,
  schedule: Schedule,
  draw: TimeDraw,
  other: TimeDraw | None = None,
  *,
  equal: float = 0.0,
) -> tuple[Time, Time]:
  """Draws pairs (t, s): the larger and the smaller of two drawn times.

  Args:
    key: the key of both draws.
    batch_size: the number of pairs.
    schedule: gives the noise level at each time.
    draw: the first draw.
    other: the second draw; the same as the first if None.
    equal: the probability that a pair has s = t, where t is the first draw.
  """
  key_one, key_two, key_equal = jax.random.split(key, 3)
  one = draw(key_one, batch_size, schedule)
  two = (other or draw)(key_two, batch_size, schedule)
  same = jax.random.uniform(key_equal, (batch_size,)) < equal
  two = jnp.where(same, one, two)
  return jnp.maximum(one, two), jnp.minimum(one, two)


def _normal_quantile(u: Time, mean: float, std: float) -> Time:
  """The quantile of a normal distribution, finite at u = 0 and u = 1 too."""
  tiny = jnp.finfo(u.dtype).tiny
  u = jnp.clip(u, tiny, 1 - jnp.finfo(u.dtype).epsneg)
  return mean + std * jax.scipy.special.ndtri(u)


def _normal_share(x: Time, mean: float, std: float) -> Time:
  """The share of a normal distribution below x."""
  return jax.scipy.special.ndtr((x - mean) / std)


def draw_continuous(key: Key, batch_size: int) -> Time:
  """Draws t ~ U[0, 1): Salimans & Ho 2022, Algorithm 1."""
  return jax.random.uniform(key, (batch_size,))


def draw_discrete(
  key: Key, batch_size: int, num_steps: int | Int[Array, ""]
) -> Time:
  """Draws t = i / num_steps with i ~ U{1, ..., num_steps}; t = 1 is included.

  Salimans & Ho 2022, Algorithm 2.
  """
  i = jax.random.randint(key, (batch_size,), 1, num_steps + 1)
  return fraction(i, num_steps)


def fraction(
  i: int | Shaped[Array, "..."], num_steps: int | Int[Array, ""]
) -> Float[Array, "..."]:
  """The quotient i / num_steps, correctly rounded, for whole i <= num_steps.

  So training and sampling use the same times to the bit, and i = num_steps
  gives exactly 1.
  """
  i = jnp.asarray(i, jnp.float32)
  # XLA divides an array by a scalar through multiplication with the reciprocal,
  # which is wrong in the last digit unless num_steps is a power of two. The
  # maximum equals num_steps too, but is an array.
  return i / jnp.maximum(i, num_steps)


def grid_time(
  grid: str,
  schedule: Schedule,
  i: int | Int[Array, ""],
  num_steps: int | Int[Array, ""],
) -> Scalar:
  """The time at which i of num_steps steps remain; 0 for i = 0.

  "uniform": i / N (Salimans & Ho 2022); "quadratic": (i / N)^2 (Song et al.
  2021, DDIM, appendix D.2); "karras": sigma/alpha on the curve of Karras et
  al. 2022, Eq. 5, between 0.002 and 80 (or the schedule's ends).

  Raises:
    ValueError: if the grid is unknown.
  """
  part = fraction(i, num_steps)
  if grid == "uniform":
    return part
  if grid == "quadratic":
    return part**2
  if grid != "karras":
    raise ValueError(f"grid is {grid!r}; pass one of {', '.join(GRIDS)}")
  # A grid of a single step starts at the noisy end.
  u = jnp.where(num_steps > 1, (i - 1) / jnp.maximum(num_steps - 1, 1), 1.0)
  sigma = _karras_curve(jnp.maximum(u, 0.0))
  # Keep t above 0 for i > 0: a step to exactly 0 would return x0 too early.
  t = jnp.maximum(schedule.time(-2 * jnp.log(sigma)), KARRAS_T_MIN)
  return jnp.where(i > 0, t, 0.0)


def _karras_curve(u: Float[Array, "..."]) -> Float[Array, "..."]:
  """The noise level at the place u in [0, 1] of the curve of Karras et al."""
  low, high = (sigma ** (1 / KARRAS_RHO) for sigma in KARRAS_SIGMAS)
  return (low + u * (high - low)) ** KARRAS_RHO


def index_time(
  grid: str,
  count: int,
  first: int,
  i: int | Int[Array, ""],
  num_steps: int | Int[Array, ""],
) -> Scalar:
  """The time of a grid of indices at which i of num_steps steps remain.

  With N = num_steps the indices are floor(u^p first), u = (i - 1) / (N - 1),
  where p is 1 for "uniform_indices" and 2 for "quadratic_indices"; a single
  step is at `first`. Index 0 is visited, and the last step goes from it to time
  0. These are the grids of Luhman & Luhman 2021's code, whose indices may
  repeat: a step between equal times changes nothing.

  Args:
    grid: one of `INDEX_GRIDS`.
    count: the number of indices; index j is at t = (j + 1) / count.
    first: the noisiest index that the grid visits.
    i: the number of steps still to go; may be traced.
    num_steps: the number of steps of the grid; may be traced.
  """
  last = jnp.maximum(jnp.asarray(num_steps, jnp.int32) - 1, 1)
  k = jnp.where(num_steps > 1, jnp.asarray(i, jnp.int32) - 1, last)
  quotient, rest = jnp.divmod(k * first, last)
  if grid == "quadratic_indices":
    # This is floor(k^2 first / last^2), in integers that fit into 32 bits.
    quotient = (quotient * k + rest * k // last) // last
  return jnp.where(i > 0, fraction(quotient + 1, count), 0.0)


def per_example(t: Float[Array, ""], x: Float[Array, "b h w c"]) -> Time:
  """Repeats one time for each example of a batch."""
  return jnp.broadcast_to(t, (x.shape[0],))
