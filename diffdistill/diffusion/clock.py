"""The interface of noise schedules: alpha, sigma of x_t = alpha x0 + sigma eps.

  (1)  logsnr(t) = log(alpha^2 / sigma^2), strictly decreasing in t
  (2)  angle(t)  = arctan(sigma / alpha), strictly increasing in t
  (3)  rotation(t, s) = angle(t) - angle(s); Cosine avoids this difference,
       which would lose precision for small steps
  (4)  angle_rate(t) = d angle / dt
                     = (alpha sigma' - sigma alpha') / (alpha^2 + sigma^2)

Every schedule has finite ends: alpha(1) > 0 and sigma(0) > 0, so that no
conversion between predictions divides by zero. Time is in [0, 1], and t = 0 is
data. All functions are elementwise, in the dtype of t (float32 in practice). At
both ends derivatives are one-sided, from the inside of [0, 1]: without `hold`,
jax.jvp of a clipped value would silently be 0 there.
"""

import abc
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Floats = Float[Array, "..."]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def hold(t: Floats, low: float, high: float) -> Floats:
  """Clips t to [low, high], but the derivative in t is 1 everywhere."""
  return jnp.clip(t, low, high)


@hold.defjvp
def _hold_jvp(low, high, primals, tangents):
  return hold(*primals, low, high), tangents[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule(abc.ABC):
  """The noise level as a function of time."""

  @abc.abstractmethod
  def alpha(self, t: Floats) -> Floats:
    """The factor of the clean image."""

  @abc.abstractmethod
  def sigma(self, t: Floats) -> Floats:
    """The factor of the noise."""

  @abc.abstractmethod
  def rates(self, t: Floats) -> tuple[Floats, Floats]:
    """The pair (alpha', sigma') of derivatives of alpha and sigma in t."""

  @abc.abstractmethod
  def time(self, logsnr: Floats) -> Floats:
    """The time at which logsnr(t) = logsnr, clipped to [0, 1]."""

  def logsnr(self, t: Floats) -> Floats:
    """The logarithm of the signal-to-noise ratio, equation (1)."""
    return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

  def tau(self, t: Floats) -> Floats:
    """The noise level sigma/alpha."""
    return jnp.exp(-0.5 * self.logsnr(t))

  def angle(self, t: Floats) -> Floats:
    """The angle of equation (2), in (0, pi/2)."""
    return jnp.arctan2(self.sigma(t), self.alpha(t))

  def angle_rate(self, t: Floats) -> Floats:
    """The derivative of the angle in t, equation (4); it is positive."""
    alpha, sigma = self.alpha(t), self.sigma(t)
    alpha_rate, sigma_rate = self.rates(t)
    # Both terms are positive, so the sum loses no precision.
    product = alpha * sigma_rate - sigma * alpha_rate
    return product / (alpha**2 + sigma**2)

  def rotation(self, t: Floats, s: Floats) -> Floats:
    """Equation (3): the angle from s to t, positive for s < t."""
    alpha_t, sigma_t = self.alpha(t), self.sigma(t)
    alpha_s, sigma_s = self.alpha(s), self.sigma(s)
    return jnp.arctan2(
      sigma_t * alpha_s - alpha_t * sigma_s,
      alpha_t * alpha_s + sigma_t * sigma_s,
    )


def require_increasing(schedule: Schedule, low: str, high: str) -> None:
  low_value, high_value = getattr(schedule, low), getattr(schedule, high)
  if not low_value < high_value:
    raise ValueError(
      f"{low} is {low_value} and {high} is {high_value}; pass {low} < {high}"
    )
