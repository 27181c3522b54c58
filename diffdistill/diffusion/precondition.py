"""Makes a denoiser from a raw network F:

  out = c_skip x_t + c_out F(c_in x_t, c_noise)

`Identity` scales nothing and only chooses the unit in which the network reads
the noise level. `EDMPrecondition` has the coefficients of Karras et al. 2022,
Table 1; its `out` is x0. For consistency models, Song et al. 2023 change them
so that `out` is x_t / alpha at the clean end. With tau = sigma/alpha, the
lowest level tau_0 = tau(0), and d = sigma_data:

  c_skip   d^2 / ((tau - tau_0)^2 + d^2) / alpha
  c_out    d (tau - tau_0) / sqrt(tau^2 + d^2)
"""

import abc
import dataclasses
from typing import Annotated, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.diffusion.schedule import Schedule
from diffdistill.diffusion.weighting import SIGMA_DATA
from diffdistill.ranges import Range, Steps, check_ranges

NOISE_UNITS = ("angle", "time", "index")


class Scaling(NamedTuple):
  """The coefficients of this file's equation, at the time of each example."""

  c_skip: Float[Array, " b"]
  c_out: Float[Array, " b"]
  c_in: Float[Array, " b"]
  c_noise: Float[Array, " b"]


class Precondition(abc.ABC):
  """The scaling of a network's input and output."""

  @abc.abstractmethod
  def scaling(self, schedule: Schedule, t: Float[Array, " b"]) -> Scaling:
    """The coefficients at time t."""

  @abc.abstractmethod
  def aim(
    self, schedule: Schedule, t: Float[Array, " b"], s: Float[Array, " b"]
  ) -> Float[Array, " b"]:
    """The number that a two-time network reads as s, in the unit of c_noise.

    It equals c_noise at s = t, and its value and slope are finite for all s.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity(Precondition):
  """Gives the network x_t unscaled, and uses its output unchanged.

  Args:
    noise: the number that the network reads. "angle": 2/pi angle(t), which is
      arctan(exp(-logsnr/2)) / (pi/2), the embedding of Salimans & Ho 2022's
      code; "time": t itself; "index": t - 1/num_steps for a schedule of
      discrete steps; 1000 times this is DDPM's index (from 0).
    num_steps: the steps of the discrete schedule, for "index".
  """

  noise: str = "angle"
  num_steps: Steps = 1000

  def __post_init__(self):
    if self.noise not in NOISE_UNITS:
      raise ValueError(
        f"noise is {self.noise!r}; pass one of {', '.join(NOISE_UNITS)}"
      )
    check_ranges(self)

  def scaling(self, schedule: Schedule, t: Float[Array, " b"]) -> Scaling:
    one, noise = jnp.ones_like(t), self._noise(schedule, t)
    return Scaling(c_skip=0 * one, c_out=one, c_in=one, c_noise=noise)

  def aim(
    self, schedule: Schedule, t: Float[Array, " b"], s: Float[Array, " b"]
  ) -> Float[Array, " b"]:
    """The value of s in the unit in which the network reads t."""
    return self._noise(schedule, s)

  def _noise(
    self, schedule: Schedule, t: Float[Array, " b"]
  ) -> Float[Array, " b"]:
    return {
      "angle": lambda: schedule.angle(t) * (2 / jnp.pi),
      "time": lambda: t,
      "index": lambda: t - 1 / self.num_steps,
    }[self.noise]()


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMPrecondition(Precondition):
  """The scaling of Karras et al. 2022, Table 1, applied to x_t / alpha.

  Unlike the paper, c_noise is divided by 1000, because our time embeddings
  multiply by 1000.

  Args:
    sigma_data: the standard deviation of the data.
    boundary: whether `out` is exactly x_t / alpha at t = 0, by the scaling of
      Song et al. 2023, appendix C. The scaling differs from that of Karras et
      al. only near the lowest noise level.
    noise_factor: c_noise is this number times log(sigma). The code of Song et
      al. 2023 for ImageNet has 250.
  """

  sigma_data: Annotated[float, Range(1e-3, 1000)] = SIGMA_DATA
  boundary: bool = False
  noise_factor: Annotated[float, Range(1e-3, 10**4)] = 0.25

  def __post_init__(self):
    check_ranges(self)

  def scaling(self, schedule: Schedule, t: Float[Array, " b"]) -> Scaling:
    alpha = schedule.alpha(t)
    sigma = schedule.sigma(t) / alpha
    total = sigma**2 + self.sigma_data**2
    lowest = self._lowest(schedule, t)
    above = sigma - lowest
    return Scaling(
      c_skip=self.sigma_data**2 / (above**2 + self.sigma_data**2) / alpha,
      c_out=above * self.sigma_data / jnp.sqrt(total),
      c_in=1 / jnp.sqrt(total) / alpha,
      c_noise=self.noise_factor * jnp.log(sigma) / 1000,
    )

  def _lowest(
    self, schedule: Schedule, t: Float[Array, " b"]
  ) -> Float[Array, " b"]:
    """The noise level at which `out` is x_t / alpha."""
    zero = jnp.zeros_like(t)
    if not self.boundary:
      return zero
    return schedule.sigma(zero) / schedule.alpha(zero)

  def aim(
    self, schedule: Schedule, t: Float[Array, " b"], s: Float[Array, " b"]
  ) -> Float[Array, " b"]:
    """Gives c_noise(t) - 2/pi rotation(t, s), where the gap t - s is an angle.

    log(sigma), in the unit of t, has the slope 1/sigma near s = 0, which is
    infinite if sigma(0) = 0. The angle, by which a step from t to s rotates,
    has a finite slope everywhere.
    """
    gap = 2 / jnp.pi * schedule.rotation(t, s)
    return self.scaling(schedule, t).c_noise - gap
