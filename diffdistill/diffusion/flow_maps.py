"""Three identities of the flow map that a prediction of two times defines.

Let p = angle(t), d = p_t - p_s, and let x be x_t on the circle, x_t divided by
|(alpha, sigma)|, with the velocity v = dx/dp of the probability flow. A network
of two times predicts the average velocity u(x, t, s), and its flow map is

  (1)  X = cos(d) x - sin(d) u,   with u(x, t, t) = v

It is the true flow map if and only if one of the following holds everywhere:

  (2)  Eulerian: X stays the same while x follows the flow from t,
       cos(d) (v - u) - sin(d) (x + du/dp_t) = 0,  du/dp_t along (v, 1)
  (3)  Lagrangian: X follows the flow while s changes,
       dX/dp_s = sin(d) x + cos(d) u - sin(d) du/dp_s = v(X, s)
  (4)  semigroup: two jumps t -> m -> s end where one jump ends, so with the
       angles a from m to t and b from s to m, and u' at the point after a,
       sin(d) u = sin(a) (cos(b) u - sin(b) x) + sin(b) u'

These forms are finite for every schedule, also where alpha or sigma is 0. On
rectified flow, (2) is the MeanFlow identity (Geng et al. 2025, Eq. 6) in other
coordinates; for s = 0 it is the continuous-time consistency model (Lu & Song
2024, Eq. 6). (2) and (3) are in Boffi et al. 2024 and Sabour et al. 2025, (4)
in Frans et al. 2024 (shortcut models) and Kim et al. 2024.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import Image, Time
from diffdistill.diffusion.prediction import Model, Prediction
from diffdistill.diffusion.process import GaussianProcess, expand_like


def circle_velocity(
  process: GaussianProcess, prediction: Prediction, t: Time
) -> Image:
  """Computes u of equation (1); it is v if the prediction has one time."""
  alpha, sigma = process.coefficients(t, prediction.x0)
  length = jnp.hypot(alpha, sigma)
  return (alpha * prediction.eps - sigma * prediction.x0) / length


def eulerian(
  process: GaussianProcess,
  model: Model,
  flow: Prediction,
  x_t: Image,
  t: Time,
  s: Time,
  share: float | Float[Array, ""] = 1.0,
  along: Prediction | None = None,
) -> Image:
  """Computes the left side of equation (2); its size is the error of u.

  Args:
    process: the process.
    model: the network of two times; it is differentiated forwards, so pass one
      of `Denoiser.exact`.
    flow: gives v at x_t: a prediction at t, or the x0 and eps that x_t was made
      from.
    x_t, t, s: the noisy images, their times, and the times after the jump.
    share: a factor of the second term, which papers raise from 0 to 1 in their
      first updates; may be traced.
    along: gives the direction of the derivative, if it is not that of `flow`.
  """
  d = process.schedule.rotation(t, s)
  cos, sin = (expand_like(part, x_t) for part in (jnp.cos(d), jnp.sin(d)))
  # Multiply the direction by sin(d) before the derivative is taken, not the
  # derivative after it: the derivative alone may overflow.
  direction = flow if along is None else along
  along_t = jnp.sin(d) / process.schedule.angle_rate(t)
  along_x = expand_like(along_t, x_t) * process.velocity(direction, x_t, t)
  u, rate = jax.jvp(
    lambda x, t: circle_velocity(process, model(x, t, s), t),
    (x_t, t),
    (along_x, along_t),
  )
  x, _ = process.to_circle(x_t, t)
  v = circle_velocity(process, flow, t)
  return cos * (v - u) - share * (sin * x + rate)


def lagrangian(
  process: GaussianProcess, model: Model, x_t: Image, t: Time, s: Time
) -> tuple[Image, Image]:
  """Computes x_s = |(alpha_s, sigma_s)| X, and dX/dp_s of equation (3).

  Args:
    process, x_t, t, s: see `eulerian`.
    model: the network of two times; it is differentiated forwards, so pass one
      of `Denoiser.exact`.
  """
  schedule = process.schedule
  d = schedule.rotation(t, s)
  cos, sin = (expand_like(part, x_t) for part in (jnp.cos(d), jnp.sin(d)))
  u, rate = jax.jvp(
    lambda s: circle_velocity(process, model(x_t, t, s), t),
    (s,),
    (jnp.sin(d) / schedule.angle_rate(s),),
  )
  x, _ = process.to_circle(x_t, t)
  length = jnp.hypot(*process.coefficients(s, x_t))
  return length * (cos * x - sin * u), sin * x + cos * u - rate


def semigroup(
  process: GaussianProcess,
  model: Model,
  x_t: Image,
  t: Time,
  middle: Time,
  s: Time,
) -> Image:
  """Computes u of equation (4): of the jump that equals two of the model's.

  Args:
    process, x_t, t, s: see `eulerian`.
    model: the network of two times.
    middle: the time between s and t at which the first jump ends.
  """
  schedule = process.schedule
  first = model(x_t, t, middle)
  x_m = process.rotate(x_t, first, t, middle)
  u = circle_velocity(process, first, t)
  rest = circle_velocity(process, model(x_m, middle, s), middle)
  x, _ = process.to_circle(x_t, t)
  a, b = schedule.rotation(t, middle), schedule.rotation(middle, s)
  whole = jnp.sin(schedule.rotation(t, s))
  # For s = t both shares are 0 / 0; they tend to 1/2.
  moved = whole > 0
  divisor = jnp.where(moved, whole, 1.0)
  share, other = (
    expand_like(jnp.where(moved, jnp.sin(part) / divisor, 0.5), x_t)
    for part in (a, b)
  )
  b = expand_like(b, x_t)
  return share * (jnp.cos(b) * u - jnp.sin(b) * x) + other * rest
