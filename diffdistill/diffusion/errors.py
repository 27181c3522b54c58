"""How large an error is, by which a loss measures images.

With |e|^2 = the sum of squares over the pixels and channels of an image:

  (1)  pseudo-Huber: sqrt(|e|^2 + c^2) - c
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import Image


def pseudo_huber(error: Image, c: float) -> Float[Array, " b"]:
  """Computes equation (1) for each image; |e| itself if c is 0.

  For errors far below c it is |e|^2 / (2 c), and for errors far above it is
  |e| - c (Charbonnier et al. 1997; Song & Dhariwal 2023, Eq. 8). The gradient
  is 0 at e = 0, for c = 0 too.
  """
  square = jnp.sum(jnp.square(error), axis=tuple(range(1, error.ndim)))
  # The quotient loses no digits for a small error, unlike the difference. The
  # root of 0 has an infinite derivative, so leave it out.
  exact = square <= 0
  square = jnp.where(exact, 1.0, square)
  return jnp.where(exact, 0.0, square / (jnp.sqrt(square + c**2) + c))
