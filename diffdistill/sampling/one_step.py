"""One step: the network's x0 at t = 1, whatever num_steps says."""

import dataclasses

from jaxtyping import Array, Int

from diffdistill.arrays import Image, Key, Time
from diffdistill.diffusion.prediction import Denoise
from diffdistill.sampling.sampler import Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneStep(Sampler):
  """Jumps from t = 1 to the clean image (Luhman & Luhman 2021)."""

  def step(
    self,
    denoise: Denoise,
    x_t: Image,
    t: Time,
    s: Time,
    key: Key,
    num_steps: Int[Array, ""],
  ) -> Image:
    return self.predict(denoise, x_t, t).x0

  def __call__(
    self,
    denoise: Denoise,
    x: Image,
    key: Key,
    num_steps: int | Int[Array, ""] = 1,
  ) -> Image:
    return super().__call__(denoise, x, key, 1)
