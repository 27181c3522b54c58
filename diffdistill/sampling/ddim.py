"""DDIM: the deterministic sampler (Song et al. 2021, Eq. 12 with eta = 0)."""

import dataclasses

from jaxtyping import Array, Int

from diffdistill.arrays import Image, Key, Time
from diffdistill.diffusion.prediction import Denoise
from diffdistill.sampling.sampler import Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM(Sampler):
  """Rotates (x0, eps) to the next time; the last step returns x0."""

  def step(
    self,
    denoise: Denoise,
    x_t: Image,
    t: Time,
    s: Time,
    key: Key,
    num_steps: Int[Array, ""],
  ) -> Image:
    prediction = self.predict(denoise, x_t, t)
    return self.process.ddim(x_t, prediction, t, s)
