"""Jumps along the flow map of a network of two times.

The prediction of such a network at (x_t, t, s) has a DDIM step from t to s that
ends where the probability flow from x_t ends at s. So a step of any length is
exact if the network is.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from diffdistill.arrays import Image, Key, Time
from diffdistill.diffusion.prediction import Model
from diffdistill.diffusion.process import expand_like
from diffdistill.sampling.sampler import Memory, Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMap(Sampler):
  """Jumps from each time of the grid to the next; the last jump ends at x0.

  Only the image at the end is clipped: before that, the x0 of a prediction of
  two times is no image.
  """

  def step(
    self,
    model: Model,
    x_t: Image,
    memory: Memory,
    t: Time,
    s: Time,
    key: Key,
    num_steps: Int[Array, ""],
  ) -> tuple[Image, Memory]:
    prediction = model(x_t, t, s)
    image = self._clipped(prediction.x0)
    x_s = self.process.rotate(x_t, prediction, t, s)
    return jnp.where(expand_like(s, x_t) > 0, x_s, image), memory

  def predicted(
    self,
    model: Model,
    x: Image,
    key: Key,
    num_steps: int | Int[Array, ""],
    done: int | Int[Array, ""],
  ) -> Image:
    """The end of a single jump to time 0, after some of the steps."""
    x_t = self(model, x, key, num_steps, stop=done)
    t = jnp.full(x.shape[:1], self.time(num_steps - done, num_steps))
    return self._clipped(model(x_t, t, jnp.zeros_like(t)).x0)

  def _clipped(self, image: Image) -> Image:
    return jnp.clip(image, -1, 1) if self.clip else image
