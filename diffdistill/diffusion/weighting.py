"""w(logsnr), the weight of ||x0 - x0_hat||^2 in a denoising loss.

  name           w                      equals
  constant       1                      x0-MSE
  snr            SNR                    eps-MSE
  truncated_snr  max(SNR, 1)            max(x0-MSE, eps-MSE)
  snr_plus_one   SNR + 1                v-MSE (variance preserving)
  edm            SNR + 1 / sigma_data^2 Karras et al. 2022, Table 1

The first four are Salimans & Ho 2022, section 4. Because eps follows linearly
from x0, the maximum of the two errors per example is the weight's maximum.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

SIGMA_DATA = 0.5  # Karras et al. 2022, Table 1


def weight(name: str, logsnr: Float[Array, " b"]) -> Float[Array, " b"]:
  """The weighting called `name` at these noise levels.

  Raises:
    ValueError: for an unknown name.
  """
  snr = jnp.exp(logsnr)
  weights = {
    "constant": jnp.ones_like(snr),
    "snr": snr,
    "truncated_snr": jnp.maximum(snr, 1),
    "snr_plus_one": snr + 1,
    "edm": snr + 1 / SIGMA_DATA**2,
  }
  if name not in weights:
    raise ValueError(f"weighting is {name!r}; pass one of {', '.join(weights)}")
  return weights[name]
