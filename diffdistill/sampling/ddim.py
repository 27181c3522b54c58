"""DDIM: the deterministic sampler (Song et al. 2021, Eq. 12 with eta = 0)."""

import dataclasses

from jaxtyping import Array, Int

from diffdistill.arrays import Image, Key, Time
from diffdistill.diffusion.prediction import Model
from diffdistill.sampling.sampler import Memory, Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM(Sampler):
  """Makes x_s from the predicted x0 and eps; the last step returns x0."""

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
    prediction = self.predict(model, x_t, t)
    return self.process.ddim(x_t, prediction, t, s), memory
