"""Classifier-free guidance of a denoiser (Ho & Salimans 2022, Eq. 6).

  (1)  x0_guided = x0_cond + w (x0_cond - x0_uncond)

w = 0 is the conditional model unchanged. eps, v and every other output are
linear in x0 at a given x_t, so (1) holds for each of them. Outside an interval
of times, w is 0 (Kynkaanniemi et al. 2024, Eq. 4, where the interval is one of
noise levels): guidance at the noisiest times reduces diversity, and at the
cleanest times it has no effect.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import Image, Time
from diffdistill.diffusion.prediction import Model, Prediction
from diffdistill.diffusion.process import expand_like
from diffdistill.ranges import GUIDANCE, Range, check_ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told:
  """A guidance weight that the network is told, so that one pass is enough.

  The network has learned from guided teachers of many weights, see
  objectives/guidance_distillation.py.

  Args:
    weight: w of equation (1).
  """

  weight: Annotated[float, GUIDANCE]

  def __post_init__(self):
    check_ranges(self, "guidance ")


def told_in(told: tuple[float, ...], weight: float, name: str) -> Told:
  """The guidance weight that a network is told, if it has learned it.

  Args:
    told: the lowest and the highest weight that it has learned.
    weight: the wanted weight.
    name: the name of the model, for the message.

  Raises:
    ValueError: if the weight is outside the range.
  """
  low, high = told
  if not low <= weight <= high:
    raise ValueError(
      f"guidance is {weight:g}, but {name} has learned weights from {low:g} to"
      f" {high:g}; pass one of these"
    )
  return Told(weight=weight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
  """How strongly, and at which times, a model is guided.

  A weight of 0 means no guidance. Papers with another convention use 1 for no
  guidance.

  Args:
    weight: w of equation (1); 0 for none.
    interval: the times (low, high) in [0, 1], both included, at which it acts.
    together: whether one pass over twice the images makes both predictions. It
      needs more memory, and may be faster on a device that one batch does not
      fill; on a CPU it is not faster.
  """

  weight: Annotated[float, Range(0, 1000)] = 0.0
  interval: tuple[Annotated[float, Range(0, 1)], ...] = (0.0, 1.0)
  # It changes no image, so it is not in the text that names a guidance.
  together: bool = dataclasses.field(default=False, repr=False)

  def __post_init__(self):
    if len(self.interval) != 2 or not (
      0 <= self.interval[0] < self.interval[1] <= 1
    ):
      raise ValueError(
        f"guidance interval is {self.interval}; pass times (low, high) with"
        " 0 <= low < high <= 1"
      )
    check_ranges(self, "guidance ")

  def passes(self, guided: bool) -> int:
    """The number of network passes of one call: 2 with guidance, else 1."""
    return 2 if guided and self.weight > 0 else 1

  def __call__(
    self,
    conditional: Model,
    unconditional: Model,
    scale: float | Float[Array, ""] | Float[Array, " b"] = 1.0,
    both: Callable[..., tuple[Prediction, Prediction]] | None = None,
  ) -> Model:
    """Returns one model that predicts by equation (1).

    Args:
      conditional, unconditional: the same model, with and without its
        condition.
      scale: a factor of the weight, or one for each image; may be traced. If
        all are 0, the unconditional model is not run.
      both: both models in one pass, with the arguments of a model; it is used
        if `together`.
    """
    low, high = self.interval

    def model(x_t: Image, t: Time, s: Time | None = None) -> Prediction:
      def guided(told: Prediction, untold: Prediction) -> Prediction:
        inside = (low <= t) & (t <= high)
        w = expand_like(jnp.where(inside, self.weight * scale, 0.0), x_t)
        return jax.tree.map(lambda c, u: c + w * (c - u), told, untold)

      acts = jnp.any(jnp.asarray(scale) != 0)
      if self.together and both is not None:
        return jax.lax.cond(
          acts,
          lambda: guided(*both(x_t, t, s)),
          lambda: conditional(x_t, t, s),
        )
      told = conditional(x_t, t, s)
      return jax.lax.cond(
        acts, lambda: guided(told, unconditional(x_t, t, s)), lambda: told
      )

    return model
