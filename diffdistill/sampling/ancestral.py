"""Ancestral sampling: x_s ~ q(x_s | x_t, x0 = D(x_t)) (Ho et al. 2020)."""

import dataclasses
from typing import Annotated

import jax
from jaxtyping import Array, Int

from diffdistill.arrays import Image, Key, Time
from diffdistill.diffusion.prediction import Model
from diffdistill.ranges import Range
from diffdistill.sampling.sampler import Memory, Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestral(Sampler):
  """Draws x_s from the posterior of the predicted x0; the last step gives x0.

  Args:
    noise: interpolates the logarithm of the variance between its lower bound
      (0, "small") and its upper bound (1, "large"): Salimans & Ho 2022, Eq. 5.
  """

  noise: Annotated[float, Range(0, 1)] = 0.0

  @property
  def deterministic(self) -> bool:
    return False

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
    x0 = self.predict(model, x_t, t).x0
    mean, std = self.process.posterior(x_t, x0, t, s, self.noise)
    return mean + std * jax.random.normal(key, x_t.shape), memory
