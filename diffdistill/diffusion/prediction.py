"""The outputs of networks, and the linear map from each of them to (x0, eps).

Every output p is linear in the two ends of the line through x_t:

  (1)  x_t = alpha x0 + sigma eps
  (2)  p   = a x0 + b eps

  output     a        b           source
  x0         1        0
  eps        0        1           Ho et al. 2020, Eq. 12
  v         -sigma    alpha       Salimans & Ho 2022, section 4
  velocity  -1        1           Liu et al. 2022, Eq. 1 (dx_t/dt of the flow)
  score      0       -1/sigma     Song et al. 2021

so one 2x2 system, with determinant alpha b - sigma a, turns any of them into
any other. A network with the output "both" predicts x0 and eps; the two are
averaged with weights that depend on the noise level.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import Image, Time

OUTPUTS = ("x0", "eps", "v", "velocity", "score", "both")


class Prediction(NamedTuple):
  """The predicted image x0 and noise eps, with alpha x0 + sigma eps = x_t."""

  x0: Image
  eps: Image


@runtime_checkable
class Model(Protocol):
  """A denoiser with its weights and condition bound, as samplers call it."""

  def __call__(self, x_t: Image, t: Time, s: Time | None = None) -> Prediction:
    """The prediction at time t; s is the time a step aims at, by default t."""
    ...


def output_channels(output: str, channels: int) -> int:
  """How many channels a network of this output has for images of `channels`.

  Raises:
    ValueError: if the output is unknown.
  """
  if output not in OUTPUTS:
    raise ValueError(f"output is {output!r}; pass one of {', '.join(OUTPUTS)}")
  return 2 * channels if output == "both" else channels


def _row(output: str, alpha: Array, sigma: Array) -> tuple[Array, Array]:
  """The coefficients (a, b) of equation (2)."""
  zero, one = jnp.zeros_like(alpha), jnp.ones_like(alpha)
  rows = {
    "x0": (one, zero),
    "eps": (zero, one),
    "v": (-sigma, alpha),
    "velocity": (-one, one),
    "score": (zero, -1 / sigma),
  }
  if output not in rows:
    raise ValueError(f"output is {output!r}; pass one of {', '.join(rows)}")
  return rows[output]


def to_prediction(
  output: str,
  out: Float[Array, "b h w out"],
  x_t: Image,
  alpha: Float[Array, "b 1 1 1"],
  sigma: Float[Array, "b 1 1 1"],
) -> Prediction:
  """The solution (x0, eps) of equations (1) and (2) for p = out.

  For "both", out holds x0 and eps side by side on the channel axis, and they
  are averaged with the weights sigma^2 and alpha^2 (over their sum): Salimans
  & Ho 2022, section 4.
  """
  if output == "both":
    x0_out, eps_out = jnp.split(out, 2, axis=-1)
    x0 = sigma**2 * x0_out + alpha * (x_t - sigma * eps_out)
    return from_x0(x0 / (alpha**2 + sigma**2), x_t, alpha, sigma)
  if output == "x0":
    # Return x0 itself, because solving the 2x2 system would round it.
    return from_x0(out, x_t, alpha, sigma)
  a, b = _row(output, alpha, sigma)
  determinant = alpha * b - sigma * a
  return Prediction(
    x0=(b * x_t - sigma * out) / determinant,
    eps=(alpha * out - a * x_t) / determinant,
  )


def from_prediction(
  output: str,
  prediction: Prediction,
  alpha: Float[Array, "b 1 1 1"],
  sigma: Float[Array, "b 1 1 1"],
) -> Image:
  """The network output p that means this prediction: equation (2)."""
  a, b = _row(output, alpha, sigma)
  return a * prediction.x0 + b * prediction.eps


def from_x0(
  x0: Image,
  x_t: Image,
  alpha: Float[Array, "b 1 1 1"],
  sigma: Float[Array, "b 1 1 1"],
) -> Prediction:
  """The prediction of this x0, with the eps that follows from equation (1)."""
  return Prediction(x0=x0, eps=(x_t - alpha * x0) / sigma)


def clip(
  prediction: Prediction,
  x_t: Image,
  alpha: Float[Array, "b 1 1 1"],
  sigma: Float[Array, "b 1 1 1"],
) -> Prediction:
  """Clips x0 to [-1, 1] and recomputes eps, for samplers but not for losses."""
  return from_x0(jnp.clip(prediction.x0, -1, 1), x_t, alpha, sigma)
