"""The base class of samplers: it repeats one step over falling times."""

import abc
import dataclasses
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from diffdistill.arrays import Image, Key, Scalar, Time
from diffdistill.diffusion.prediction import Model, Prediction, clip
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import DiscreteBetas
from diffdistill.diffusion.timesteps import (
  GRIDS,
  INDEX_GRIDS,
  grid_time,
  index_time,
  per_example,
)
from diffdistill.ranges import Range, check_ranges

# What a multistep solver remembers between steps: a tree of arrays.
Memory = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler(abc.ABC):
  """Turns noise into an image in `num_steps` steps of the grid.

  Args:
    process: the process to run backwards.
    grid: "uniform", "quadratic" or "karras"; or "uniform_indices" or
      "quadratic_indices", which visit whole indices of a discrete schedule,
      down to index 0.
    first_time: the time at which the grid begins, in (0, 1]. All times of the
      uniform and the quadratic grid are multiplied by it. A grid of indices
      begins at the index of this time: of 1000 indices, index j has the time
      (j + 1) / 1000, so 0.801 is index 800.
    clip: whether x0 is clipped to [-1, 1] in every step (eps is recomputed),
      and in the returned image.
  """

  process: GaussianProcess
  grid: str = "uniform"
  first_time: Annotated[float, Range(0, 1, "least")] = 1.0
  clip: bool = True

  # How many passes of the denoiser one step takes.
  evaluations: ClassVar[int] = 1

  def __post_init__(self):
    grids = (*GRIDS, *INDEX_GRIDS)
    if self.grid not in grids:
      raise ValueError(f"grid is {self.grid!r}; pass one of {', '.join(grids)}")
    check_ranges(self)
    if self.first_time != 1 and self.grid == "karras":
      raise ValueError(
        f"first_time is {self.first_time}, but the karras grid begins at its"
        " own noise level; pass first_time=1, or grid=uniform or quadratic"
      )
    if self.grid in INDEX_GRIDS:
      self._check_indices()

  def _check_indices(self) -> None:
    schedule = self.process.schedule
    if not isinstance(schedule, DiscreteBetas):
      raise ValueError(
        f"grid is {self.grid}, but the schedule {type(schedule).__name__} has"
        " no indices; pass grid=uniform or quadratic, or a schedule of kind"
        " linear_beta or cosine_beta"
      )
    index = self.first_time * schedule.num_steps
    if abs(index - round(index)) > 1e-6 or round(index) < 1:
      raise ValueError(
        f"first_time is {self.first_time}, which is no whole index of"
        f" {schedule.num_steps}; pass (index + 1) / {schedule.num_steps}"
      )

  @abc.abstractmethod
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
    """Steps to x_s, the clean image if s = 0; returns x_s and the memory.

    Args:
      model: the denoiser to follow.
      x_t: the images at t.
      memory: the memory after the previous step; at first the result of
        `memory`.
      t, s: the present time of each image, and the time after the step.
      key: the key of the noise that a stochastic sampler adds.
      num_steps: the number of steps from noise to image.
    """

  def memory(self, x: Image) -> Memory:
    """The memory before the first step; empty for solvers of one step."""
    return ()

  @property
  def deterministic(self) -> bool:
    """Whether the image is a function of the noise alone."""
    return True

  def predict(
    self, model: Model, x_t: Image, t: Time, s: Time | None = None
  ) -> Prediction:
    """Predicts at t, aiming at s; clips x0 if this sampler has clip=True."""
    prediction = model(x_t, t, s)
    if not self.clip:
      return prediction
    return clip(prediction, x_t, *self.process.coefficients(t, x_t))

  def time(
    self, i: int | Int[Array, ""], num_steps: int | Int[Array, ""]
  ) -> Scalar:
    """The time at which i of num_steps steps remain; 0 for i = 0."""
    schedule = self.process.schedule
    if self.grid in INDEX_GRIDS:
      assert isinstance(schedule, DiscreteBetas)  # checked by __post_init__
      count = schedule.num_steps
      first = round(self.first_time * count) - 1
      return index_time(self.grid, count, first, i, num_steps)
    return self.first_time * grid_time(self.grid, schedule, i, num_steps)

  def start(self, noise: Image, num_steps: int | Int[Array, ""]) -> Image:
    """Scales unit noise to the sigma of the grid's first time.

    A grid of indices begins with unit noise unchanged, as in the code of Luhman
    & Luhman 2021.
    """
    if self.grid in INDEX_GRIDS:
      return noise
    first = self.time(num_steps, num_steps)
    return noise * self.process.schedule.sigma(first)

  def __call__(
    self,
    model: Model,
    x: Image,
    key: Key,
    num_steps: int | Int[Array, ""],
    stop: int | Int[Array, ""] | None = None,
  ) -> Image:
    """Turns the noise x, which `start` has scaled, into an image.

    Args:
      model: the denoiser to follow. A loss that rolls out its own student must
        first stop the gradient of the weights: a loop with a traced number of
        steps has no backward derivative.
      x: the noise.
      key: the random key of stochastic samplers; other samplers ignore it.
      num_steps: the number of steps from noise to image; may be traced, so that
        one executable serves every number of steps.
      stop: how many of the steps to do, all by default; may be traced. The
        images are then those at time(num_steps - stop, num_steps).
    """
    num_steps = jnp.asarray(num_steps, jnp.int32)

    def body(
      done: Int[Array, ""], carry: tuple[Image, Memory]
    ) -> tuple[Image, Memory]:
      x_t, memory = carry
      i = num_steps - done
      t, s = (per_example(self.time(j, num_steps), x) for j in (i, i - 1))
      key_step = jax.random.fold_in(key, done)
      return self.step(model, x_t, memory, t, s, key_step, num_steps)

    last = num_steps if stop is None else stop
    return jax.lax.fori_loop(0, last, body, (x, self.memory(x)))[0]

  def predicted(
    self,
    model: Model,
    x: Image,
    key: Key,
    num_steps: int | Int[Array, ""],
    done: int | Int[Array, ""],
  ) -> Image:
    """Predicts the clean image after some of the steps from the noise x.

    Args:
      model, x, key, num_steps: see `__call__`.
      done: how many of the steps are done, less than `num_steps`; may be
        traced. For 0 the prediction is of the noise itself.
    """
    x_t = self(model, x, key, num_steps, stop=done)
    t = per_example(self.time(num_steps - done, num_steps), x)
    return self.predict(model, x_t, t).x0
