"""w(logsnr), the weight of ||x0 - x0_hat||^2 in a denoising loss.

  name           w                      equals
  constant       1                      x0-MSE
  snr            SNR                    eps-MSE
  truncated_snr  max(SNR, 1)            max(x0-MSE, eps-MSE)
  snr_plus_one   SNR + 1                v-MSE (variance preserving)
  edm            SNR + 1 / sigma_data^2 Karras et al. 2022, Table 1
  clipped_snr    SNR in [0.01, 5]       our own choice

The first four are from Salimans & Ho 2022, section 4. The eps-MSE of an example
is SNR times its x0-MSE, so the larger of both has the weight max(SNR, 1).
"clipped_snr" is for losses that draw all times up to the ends, where SNR is
e^20 or e^-20: with it, every time contributes and none dominates.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SIGMA_DATA = 0.5  # Karras et al. 2022, Table 1
SNR_RANGE = (0.01, 5.0)  # our own choice, for clipped_snr


def weight(name: str, logsnr: Float[Array, " b"]) -> Float[Array, " b"]:
  """The weighting called `name` at these noise levels.

  Raises:
    ValueError: if the name is unknown.
  """
  snr = jnp.exp(logsnr)
  weights = {
    "constant": jnp.ones_like(snr),
    "snr": snr,
    "truncated_snr": jnp.maximum(snr, 1),
    "snr_plus_one": snr + 1,
    "edm": snr + 1 / SIGMA_DATA**2,
    "clipped_snr": jnp.clip(snr, *SNR_RANGE),
  }
  if name not in weights:
    raise ValueError(f"weighting is {name!r}; pass one of {', '.join(weights)}")
  return weights[name]


def adaptive(
  error: Float[Array, " b"], power: float, floor: float
) -> Float[Array, " b"]:
  """Divides each error by sg(error + floor)^power (Geng et al. 2025, code).

  The divisor has no gradient. A power of 1 makes the gradients of all images
  about equally large, whatever their error; a power of 0 changes nothing.
  """
  return error / jax.lax.stop_gradient(error + floor) ** power
