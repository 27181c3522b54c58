"""The Gaussian process that a schedule defines, forwards and one step back.

  (1)  x_t = alpha_t x0 + sigma_t eps
  (2)  DDIM:  x_s = alpha_s x0 + sigma_s eps, which for unit-length
       (alpha, sigma) is the rotation x_s = cos(d) x_t - sin(d) v by
       d = angle(t) - angle(s), with v = alpha_t eps - sigma_t x0
  (3)  q(x_s | x_t, x0) is normal, with r = SNR(t) / SNR(s):
       mean = r (alpha_s / alpha_t) x_t + (1 - r) alpha_s x0
       variance between (1 - r) sigma_s^2 and (1 - r) sigma_t^2
  (4)  velocity: dx_t/dt = alpha' x0 + sigma' eps along the probability flow
  (5)  circle: x_t / |(alpha, sigma)| = cos(p) x0 + sin(p) eps, p = angle(t)

Sources: Song et al. 2021 (DDIM), Eq. 12; Salimans & Ho 2022, Eqs. 4, 5, 8.

**The last step.** A step to s = 0 returns x0 itself, in (2) and in (3), as the
released code of Salimans & Ho does: sampling ends at data, though sigma(0) is
not exactly zero. Only this file has the rule, so the samplers and the targets
of progressive distillation agree by construction.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import Image, Time
from diffdistill.diffusion.prediction import Prediction
from diffdistill.diffusion.schedule import Schedule


def expand_like(t: Time, x: Image) -> Float[Array, "b 1 1 1"]:
  """Reshapes one value per example so that it multiplies images."""
  return t.reshape((-1,) + (1,) * (x.ndim - 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianProcess:
  """The distribution of x_t given x0, and the steps from t to an earlier s."""

  schedule: Schedule

  def coefficients(self, t: Time, x: Image) -> tuple[Array, Array]:
    """Gives alpha and sigma at t, in a shape that multiplies x."""
    alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
    return expand_like(alpha, x), expand_like(sigma, x)

  def diffuse(self, x0: Image, eps: Image, t: Time) -> Image:
    """Makes x_t from x0 and eps by equation (1)."""
    alpha, sigma = self.coefficients(t, x0)
    return alpha * x0 + sigma * eps

  def arrive(self, prediction: Prediction, s: Time) -> Image:
    """Makes x_s from x0 and eps by equation (1); gives x0 if s = 0."""
    x_s = self.diffuse(prediction.x0, prediction.eps, s)
    return jnp.where(expand_like(s, x_s) > 0, x_s, prediction.x0)

  def ddim(self, x_t: Image, prediction: Prediction, t: Time, s: Time) -> Image:
    """Steps from t to s by equation (2), without noise; gives x0 if s = 0."""
    x_s = self.rotate(x_t, prediction, t, s)
    return jnp.where(expand_like(s, x_t) > 0, x_s, prediction.x0)

  def rotate(
    self, x_t: Image, prediction: Prediction, t: Time, s: Time
  ) -> Image:
    """Steps by equation (2) for every s, without a special rule for s = 0.

    The derivative of this step in s also exists at s = 0. With a prediction of
    two times, t and s, this step is the flow map from t to s.
    """
    alpha_t, sigma_t = self.coefficients(t, x_t)
    alpha_s, sigma_s = self.coefficients(s, x_t)
    length_t = jnp.hypot(alpha_t, sigma_t)
    length_s = jnp.hypot(alpha_s, sigma_s)
    v = (alpha_t * prediction.eps - sigma_t * prediction.x0) / length_t
    d = expand_like(self.schedule.rotation(t, s), x_t)
    return length_s * (jnp.cos(d) * x_t / length_t - jnp.sin(d) * v)

  def velocity(self, prediction: Prediction, x_t: Image, t: Time) -> Image:
    """Equation (4), or the average velocity if the prediction has two times."""
    alpha_rate, sigma_rate = (
      expand_like(rate, x_t) for rate in self.schedule.rates(t)
    )
    return alpha_rate * prediction.x0 + sigma_rate * prediction.eps

  def to_circle(self, x_t: Image, t: Time) -> tuple[Image, Time]:
    """Equation (5): x_t divided by |(alpha, sigma)|, and its angle."""
    length = jnp.hypot(*self.coefficients(t, x_t))
    return x_t / length, self.schedule.angle(t)

  def posterior(
    self, x_t: Image, x0: Image, t: Time, s: Time, noise: float = 0.0
  ) -> tuple[Image, Float[Array, "b 1 1 1"]]:
    """The mean and standard deviation of equation (3); x0 and 0 if s = 0.

    `noise` interpolates the logarithm of the variance: 0 is the lower bound
    ("small", the true posterior), 1 the upper ("large"); Salimans & Ho 2022,
    Eq. 5.
    """
    alpha_t, sigma_t = self.coefficients(t, x_t)
    alpha_s, sigma_s = self.coefficients(s, x_t)
    difference = self.schedule.logsnr(t) - self.schedule.logsnr(s)
    # For s = t, rounding may make 1 - r negative, so replace that by 0.
    one_minus_r = jnp.maximum(expand_like(-jnp.expm1(difference), x_t), 0.0)
    # This form of r alpha_s / alpha_t does not overflow as alpha_t -> 0.
    from_x_t = (alpha_t / alpha_s) * (sigma_s / sigma_t) ** 2
    mean = from_x_t * x_t + one_minus_r * alpha_s * x0
    std = jnp.sqrt(one_minus_r) * sigma_s ** (1 - noise) * sigma_t**noise
    last = expand_like(s, x_t) <= 0
    return jnp.where(last, x0, mean), jnp.where(last, 0.0, std)
