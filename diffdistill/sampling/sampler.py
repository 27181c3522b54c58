"""What every sampler is: a loop over falling times around one step."""

import abc
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from diffdistill.arrays import Image, Key, Scalar, Time
from diffdistill.diffusion.prediction import Denoise, Prediction, clip
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.timesteps import GRIDS, grid_time, per_example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler(abc.ABC):
  """From noise to image in `num_steps` steps of the grid.

  Args:
    process: the process to run backwards.
    grid: uniform, quadratic or karras.
    first_time: where the grid begins, in (0, 1]: times of the uniform and the
      quadratic grid are multiplied by it. 0.801 on the quadratic grid begins
      where Luhman & Luhman 2021 do, at index 800 of 1000. Unlike the paper's,
      times are not rounded down to whole indices, so that the last few lie
      below the first index, and the start has the sigma of the first time.
    clip: whether x0 is clipped to [-1, 1] in every step (eps follows), and in
      the image returned.
  """

  process: GaussianProcess
  grid: str = "uniform"
  first_time: float = 1.0
  clip: bool = True

  # Of the denoiser, in one step.
  evaluations: ClassVar[int] = 1

  def __post_init__(self):
    if self.grid not in GRIDS:
      raise ValueError(f"grid is {self.grid!r}; pass one of {', '.join(GRIDS)}")
    if not 0 < self.first_time <= 1:
      raise ValueError(
        f"first_time is {self.first_time}; pass a time in (0, 1]"
      )
    if self.first_time != 1 and self.grid == "karras":
      raise ValueError(
        f"first_time is {self.first_time}, but the karras grid begins at its"
        " own noise level; pass first_time=1, or grid=uniform or quadratic"
      )

  @abc.abstractmethod
  def step(
    self,
    denoise: Denoise,
    x_t: Image,
    t: Time,
    s: Time,
    key: Key,
    num_steps: Int[Array, ""],
  ) -> Image:
    """x_s from x_t; the clean image where s = 0."""

  @property
  def deterministic(self) -> bool:
    """Whether the image is a function of the noise alone."""
    return True

  def predict(self, denoise: Denoise, x_t: Image, t: Time) -> Prediction:
    """The denoiser's prediction, clipped when this sampler clips."""
    prediction = denoise(x_t, t)
    if not self.clip:
      return prediction
    return clip(prediction, x_t, *self.process.coefficients(t, x_t))

  def time(
    self, i: int | Int[Array, ""], num_steps: int | Int[Array, ""]
  ) -> Scalar:
    """The time that has i of num_steps steps still to go; 0 for i = 0."""
    schedule = self.process.schedule
    return self.first_time * grid_time(self.grid, schedule, i, num_steps)

  def start(self, noise: Image, num_steps: int | Int[Array, ""]) -> Image:
    """Unit noise as the grid's first time has it: times sigma there."""
    first = self.time(num_steps, num_steps)
    return noise * self.process.schedule.sigma(first)

  def __call__(
    self,
    denoise: Denoise,
    x: Image,
    key: Key,
    num_steps: int | Int[Array, ""],
  ) -> Image:
    """The image that noise x, from `start`, becomes.

    `num_steps` may be traced: one executable serves every number of steps.
    `key` is read by stochastic samplers only.
    """
    num_steps = jnp.asarray(num_steps, jnp.int32)

    def body(done: Int[Array, ""], x_t: Image) -> Image:
      i = num_steps - done
      t, s = (per_example(self.time(j, num_steps), x) for j in (i, i - 1))
      key_step = jax.random.fold_in(key, done)
      return self.step(denoise, x_t, t, s, key_step, num_steps)

    return jax.lax.fori_loop(0, num_steps, body, x)
