"""How strongly a student's clean image feels its network's output at t = 1.

An error of the output moves x0 by a factor that the noise level alone gives:

  (1)  x0(out) = x0(0) + J(t) out,  J = d x0 / d out

  output                  |J|               at t = 1 of a cosine schedule
  x0, v, velocity, both   1 or less         1
  eps                     sigma / alpha     e^10
  score                   sigma^2 / alpha   e^10

A few-step student's first step is at t = 1. A loss that compares moments of its
x0 takes w(s) (x0(t) - teacher)^2 at another time s < t, so that no weight makes
up for J(t): its gradient has one J(t) from the error and one from d x0. For eps
that is 1 / SNR(1) = e^20 times the share of other times, away from the optimum,
where the error of the output is not zero: the draws at t = 1 drown all others.
"""

import jax
import jax.numpy as jnp

from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.prediction import output_channels, to_prediction
from diffdistill.diffusion.process import expand_like

MAX_SENSITIVITY = 10.0  # ours: a tenth of the output's unit is one of x0's


def sensitivity(denoiser: Denoiser) -> float:
  """|J| of equation (1) at t = 1, of the raw output of the network."""
  # Objectives may be made inside a function that is traced.
  with jax.ensure_compile_time_eval():
    t, image = jnp.ones(1), jnp.zeros((1, 1, 1, 1))
    scaling = denoiser.precondition.scaling(denoiser.process.schedule, t)
    out = jnp.ones((1, 1, 1, output_channels(denoiser.output, 1)))
    out = expand_like(scaling.c_out, image) * out
    alpha, sigma = denoiser.process.coefficients(t, image)
    x0 = to_prediction(denoiser.output, out, image, alpha, sigma).x0
    return abs(float(x0[0, 0, 0, 0]))


def check_sensitivity(denoiser: Denoiser) -> None:
  """Refuses a network whose output says next to nothing of x0 at t = 1.

  Raises:
    ValueError: for one.
  """
  found = sensitivity(denoiser)
  if not found <= MAX_SENSITIVITY:
    raise ValueError(
      f"model.output is {denoiser.output!r}, and an error of it is {found:.3g}"
      f" times as large in the clean image at t = 1, where at most"
      f" {MAX_SENSITIVITY:g} times lets moment matching learn from any other"
      " time; pass a teacher whose output is v, x0 or both"
    )
