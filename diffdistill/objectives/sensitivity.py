"""The sensitivity of a clean image to an error of its network at t = 1.

An error in what the network outputs changes the clean image x0 by a factor that
depends on the noise level alone:

  (1)  x0(out) = x0(0) + J(t) out,  J = d x0 / d out

  output                  |J|               at t = 1 of a cosine schedule
  x0, v, velocity, both   1 or less         1
  eps                     sigma / alpha     e^10
  score                   sigma^2 / alpha   e^10

The first step of a few-step student is at t = 1. A loss that compares moments
of its x0 contains w(s) (x0(t) - teacher)^2 at another time s < t, so w cannot
compensate for J(t). The gradient has one factor J(t) from the error and one
from d x0. If the network predicts eps, the draws at t = 1 then weigh 1 / SNR(1)
= e^20 times as much as others while the prediction still has an error, and the
student learns from no other draws.
"""

import jax
import jax.numpy as jnp

from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.prediction import output_channels, to_prediction
from diffdistill.diffusion.process import expand_like

# Our choice: an error of 0.1 in the network's output changes x0 by at most 1.
MAX_SENSITIVITY = 10.0


def sensitivity(denoiser: Denoiser) -> float:
  """Computes |J| of (1) at t = 1, for the raw output of the network."""
  # Compute this outside of a trace: an objective may be constructed while a
  # function is traced.
  with jax.ensure_compile_time_eval():
    t, image = jnp.ones(1), jnp.zeros((1, 1, 1, 1))
    scaling = denoiser.precondition.scaling(denoiser.process.schedule, t)
    out = jnp.ones((1, 1, 1, output_channels(denoiser.output, 1)))
    out = expand_like(scaling.c_out, image) * out
    alpha, sigma = denoiser.process.coefficients(t, image)
    x0 = to_prediction(denoiser.output, out, image, alpha, sigma).x0
    return abs(float(x0[0, 0, 0, 0]))


def check_sensitivity(denoiser: Denoiser) -> None:
  """Refuses a network if x0 at t = 1 is too sensitive to its output.

  Raises:
    ValueError: if the sensitivity at t = 1 is above MAX_SENSITIVITY.
  """
  found = sensitivity(denoiser)
  if not found <= MAX_SENSITIVITY:
    raise ValueError(
      f"model.output is {denoiser.output!r}, and an error of it is {found:.3g}"
      f" times as large in the clean image at t = 1, where at most"
      f" {MAX_SENSITIVITY:g} times lets moment matching learn from any other"
      " time; pass a teacher whose output is v, x0 or both"
    )
