"""Noise schedules. `clock.py` has their interface and the numbered equations.

Each derivative is written by hand beside its function.
"""

import abc
import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffdistill.diffusion.clock import (
  Floats,
  Schedule,
  hold,
  require_increasing,
)
from diffdistill.ranges import Range, Side, check_ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
  """alpha = cos(angle), with the angle linear in time and logSNR clipped.

  angle(t) = a t + b with logsnr(0) = logsnr_max and logsnr(1) = logsnr_min:
  Salimans & Ho 2022, section 4, with the ends of their released code.
  """

  logsnr_min: Annotated[float, Range(-60, 60)] = -20.0
  logsnr_max: Annotated[float, Range(-60, 60)] = 20.0

  def __post_init__(self):
    check_ranges(self)
    require_increasing(self, "logsnr_min", "logsnr_max")

  @property
  def _start(self) -> float:
    return math.atan(math.exp(-0.5 * self.logsnr_max))

  @property
  def _end(self) -> float:
    """The angle between angle(1) and pi/2."""
    return math.atan(math.exp(0.5 * self.logsnr_min))

  @property
  def _slope(self) -> float:
    return math.pi / 2 - self._end - self._start

  def alpha(self, t: Floats) -> Floats:
    # Use sin(pi/2 - angle), because cos(angle) loses precision near pi/2.
    return jnp.sin(self._slope * (1 - t) + self._end)

  def sigma(self, t: Floats) -> Floats:
    return jnp.sin(self._slope * t + self._start)

  def rates(self, t: Floats) -> tuple[Floats, Floats]:
    # alpha' = -slope sigma, and sigma' = slope alpha.
    return -self._slope * self.sigma(t), self._slope * self.alpha(t)

  def angle_rate(self, t: Floats) -> Floats:
    return jnp.full_like(t, self._slope)

  def time(self, logsnr: Floats) -> Floats:
    angle = jnp.arctan(jnp.exp(-0.5 * logsnr))
    return jnp.clip((angle - self._start) / self._slope, 0.0, 1.0)

  def rotation(self, t: Floats, s: Floats) -> Floats:
    return self._slope * (t - s)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteBetas(Schedule):
  """A variance-preserving schedule given by the beta of each step.

  t = i / num_steps is DDPM's index i - 1: alpha^2 = prod_{j < i} (1 - beta_j)
  (Ho et al. 2020, Eq. 4). Between the steps log alpha^2 is linear. Times below
  `t_min` are read as t_min, so that sigma(0) > 0.
  """

  num_steps: Annotated[int, Range(2, 10**5)] = 1000
  t_min: Annotated[float, Range(1e-8, 0.5)] = 1e-5

  def __post_init__(self):
    check_ranges(self)

  @abc.abstractmethod
  def betas(self) -> Float[np.ndarray, " n"]:
    """The beta of each step, beta_0 first, in float64."""

  def _table(self) -> np.ndarray:
    """The values of log alpha^2 at t = i / num_steps, i = 0 .. num_steps."""
    return np.concatenate([[0.0], np.cumsum(np.log1p(-self.betas()))])

  def _log_alpha2(self, t: Floats) -> Floats:
    grid = jnp.linspace(0, 1, self.num_steps + 1, dtype=t.dtype)
    table = jnp.asarray(self._table(), t.dtype)
    return jnp.interp(hold(t, self.t_min, 1.0), grid, table)

  def _log_alpha2_rate(self, t: Floats) -> Floats:
    """The slope of log alpha^2 in the interval that begins at t.

    At t = 1 it is the slope of the last interval.
    """
    slopes = jnp.asarray(np.diff(self._table()) * self.num_steps, t.dtype)
    grid = jnp.linspace(0, 1, self.num_steps + 1, dtype=t.dtype)
    interval = jnp.searchsorted(grid, t, side="right") - 1
    return slopes[jnp.clip(interval, 0, self.num_steps - 1)]

  def alpha(self, t: Floats) -> Floats:
    return jnp.exp(0.5 * self._log_alpha2(t))

  def sigma(self, t: Floats) -> Floats:
    return jnp.sqrt(-jnp.expm1(self._log_alpha2(t)))

  def rates(self, t: Floats) -> tuple[Floats, Floats]:
    # alpha = e^(L/2) and sigma = sqrt(1 - e^L), with L = log alpha^2.
    half_slope = 0.5 * self._log_alpha2_rate(t)
    alpha, sigma = self.alpha(t), self.sigma(t)
    return half_slope * alpha, -half_slope * alpha**2 / sigma

  def time(self, logsnr: Floats) -> Floats:
    grid = jnp.linspace(0, 1, self.num_steps + 1, dtype=logsnr.dtype)
    table = jnp.asarray(self._table(), logsnr.dtype)
    # interp needs increasing abscissae, but the table decreases with t.
    return jnp.interp(jax.nn.log_sigmoid(logsnr), table[::-1], grid[::-1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearBeta(DiscreteBetas):
  """The schedule of DDPM, whose beta is linear over the steps.

  Ho et al. 2020, section 4.

  Args:
    power: beta^(1/power) is linear. Latent diffusion models and diffusers'
      "scaled_linear" have the power 2.
  """

  beta_min: Annotated[float, Range(1e-8, 1, "most")] = 1e-4
  beta_max: Annotated[float, Range(1e-8, 1, "most")] = 0.02
  power: Annotated[float, Range(0.1, 10)] = 1.0

  def __post_init__(self):
    super().__post_init__()
    require_increasing(self, "beta_min", "beta_max")

  def betas(self) -> Float[np.ndarray, " n"]:
    low, high = (b ** (1 / self.power) for b in (self.beta_min, self.beta_max))
    return np.linspace(low, high, self.num_steps) ** self.power


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineBeta(DiscreteBetas):
  """The schedule of improved DDPM: a squared cosine, with capped betas.

  beta_i = min(1 - f((i + 1) / n) / f(i / n), 0.999) with f(t) =
  cos^2((t + 0.008) / 1.008 pi / 2): Nichol & Dhariwal 2021, Eq. 17.
  """

  def betas(self) -> Float[np.ndarray, " n"]:
    t = np.linspace(0, 1, self.num_steps + 1)
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDM(Schedule):
  """Variance exploding: alpha is 1, and sigma is on the curve of Karras et al.

  sigma(t)^(1/rho) is linear in t between sigma_min and sigma_max (Karras et al.
  2022, Eq. 5). So N uniform steps of t visit the paper's N + 1 levels except
  the last: they step from sigma(1 / N) to 0. The grid "karras" with N steps
  visits N levels.
  """

  sigma_min: Annotated[float, Range(1e-6, 10**6)] = 0.002
  sigma_max: Annotated[float, Range(1e-6, 10**6)] = 80.0
  rho: Annotated[float, Range(0.5, 100)] = 7.0

  def __post_init__(self):
    check_ranges(self)
    require_increasing(self, "sigma_min", "sigma_max")

  @property
  def _ends(self) -> tuple[float, float]:
    return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

  def alpha(self, t: Floats) -> Floats:
    return jnp.ones_like(t)

  def sigma(self, t: Floats) -> Floats:
    low, high = self._ends
    return (low + t * (high - low)) ** self.rho

  def rates(self, t: Floats) -> tuple[Floats, Floats]:
    low, high = self._ends
    root = low + t * (high - low)
    return jnp.zeros_like(t), self.rho * (high - low) * root ** (self.rho - 1)

  def time(self, logsnr: Floats) -> Floats:
    low, high = self._ends
    root = jnp.exp(-0.5 * logsnr / self.rho)
    return jnp.clip((root - low) / (high - low), 0.0, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RectifiedFlow(Schedule):
  """The straight line alpha = 1 - t, sigma = t (Liu et al. 2022, Eq. 1).

  alpha and sigma are clipped to [margin, 1 - margin], so that the logSNR is
  finite at both ends. Their derivatives are those of the line, -1 and 1.
  """

  margin: Annotated[float, Range(1e-7, 0.5, "most")] = 1e-5

  def __post_init__(self):
    check_ranges(self)

  def alpha(self, t: Floats) -> Floats:
    return hold(1 - t, self.margin, 1 - self.margin)

  def sigma(self, t: Floats) -> Floats:
    return hold(t, self.margin, 1 - self.margin)

  def rates(self, t: Floats) -> tuple[Floats, Floats]:
    return -jnp.ones_like(t), jnp.ones_like(t)

  def time(self, logsnr: Floats) -> Floats:
    return jax.nn.sigmoid(-0.5 * logsnr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shifted(Schedule):
  """A variance-preserving schedule, shifted to the noise of another resolution.

  logsnr(t) = base.logsnr(t) + 2 log(base_size / image_size): Hoogeboom et al.
  2023 (simple diffusion), Eq. 8; more noise for larger images.
  """

  base: Schedule
  image_size: Side
  base_size: Side = 64

  def __post_init__(self):
    check_ranges(self)
    if isinstance(self.base, EDM | RectifiedFlow):
      raise ValueError(
        f"only a variance-preserving schedule can be shifted, not"
        f" {type(self.base).__name__}; pass Cosine or LinearBeta"
      )

  @property
  def shift(self) -> float:
    return 2 * math.log(self.base_size / self.image_size)

  def logsnr(self, t: Floats) -> Floats:
    return self.base.logsnr(t) + self.shift

  def alpha(self, t: Floats) -> Floats:
    return jnp.sqrt(jax.nn.sigmoid(self.logsnr(t)))

  def sigma(self, t: Floats) -> Floats:
    return jnp.sqrt(jax.nn.sigmoid(-self.logsnr(t)))

  def rates(self, t: Floats) -> tuple[Floats, Floats]:
    # Both this schedule and its base have the same d logsnr/dt, which equals
    # -2 angle' / (alpha sigma).
    base = self.base.alpha(t) * self.base.sigma(t)
    alpha, sigma = self.alpha(t), self.sigma(t)
    angle_rate = self.base.angle_rate(t) * alpha * sigma / base
    return -sigma * angle_rate, alpha * angle_rate

  def time(self, logsnr: Floats) -> Floats:
    return self.base.time(logsnr - self.shift)
