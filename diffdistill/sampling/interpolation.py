"""A path between two noises, whose points are vectors of a noise's length.

theta is the angle between the images a and b, taken as vectors:

  (1)  slerp(f) = [sin((1 - f) theta) a + sin(f theta) b] / sin(theta)

Luhman & Luhman 2021 show 11 images of a student along such a path.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.ranges import Range, check_number

# The numbers of points that a path may have.
COUNT = Range(2, 10**6)
# For a smaller sin(theta), the arc equals its chord to float32 precision.
LEAST_SINE = 1e-4


def slerp(
  a: Float[Array, "h w c"], b: Float[Array, "h w c"], n: int
) -> Float[Array, "n h w c"]:
  """Computes equation (1) at n evenly spaced fractions f, from 0 to 1.

  If a and b are nearly parallel, the points are on the straight line between
  them. The same holds if they are nearly opposite, because then all arcs are
  equally short.

  Raises:
    ValueError: if n is below 2, the number of the ends.
  """
  check_number("n", n, COUNT)
  unit_a, unit_b = (v / jnp.linalg.norm(v.ravel()) for v in (a, b))
  # Find theta without the arccosine, which loses half of its digits near 1
  # and -1.
  theta = 2 * jnp.arctan2(
    jnp.linalg.norm((unit_a - unit_b).ravel()),
    jnp.linalg.norm((unit_a + unit_b).ravel()),
  )
  f = jnp.linspace(0.0, 1.0, n).reshape(n, 1, 1, 1)
  sine = jnp.sin(theta)
  straight = sine < LEAST_SINE
  sine = jnp.where(straight, 1.0, sine)
  of_a = jnp.where(straight, 1 - f, jnp.sin((1 - f) * theta) / sine)
  of_b = jnp.where(straight, f, jnp.sin(f * theta) / sine)
  return of_a * a[None] + of_b * b[None]
