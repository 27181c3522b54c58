"""Renoising: predict the clean image, add new noise of a lower level, repeat.

  (1)  x0  = D(x_t, t, 0), the prediction of the clean image
  (2)  x_s = alpha_s x0 + sigma_s eps, with new noise eps ~ N(0, 1)
  (3)  the last step, to s = 0, returns x0

Song et al. 2023, Algorithm 1. For students that predict the end of the whole
trajectory, such as consistency models. A network with two times is told s = 0.
"""

import dataclasses
import itertools
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from diffdistill.arrays import Image, Key, Scalar, Time
from diffdistill.diffusion.prediction import Model, Prediction
from diffdistill.diffusion.timesteps import KARRAS_T_MIN
from diffdistill.ranges import Range
from diffdistill.sampling.sampler import Memory, Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Renoising(Sampler):
  """Predicts x0 and adds new noise to it (Song et al. 2023, Algorithm 1).

  Unlike the samplers that end at the lowest level of the karras grid, this one
  leaves that level out: its noise is too small to be worth a step.

  Args:
    levels: the noise levels sigma/alpha of the second step and of those after
      it, if the sampler takes this many steps and one more. The first step is
      that of the grid. With another number of steps, all times are the grid's.
  """

  levels: tuple[Annotated[float, Range(0, 10**6, "least")], ...] = ()

  def __post_init__(self):
    super().__post_init__()
    if any(a <= b for a, b in itertools.pairwise(self.levels)):
      raise ValueError(
        f"levels is {self.levels}; pass noise levels that fall, such as"
        " (0.821,)"
      )
    count = len(self.levels)
    with jax.ensure_compile_time_eval():
      times = [float(self.time(i, count + 1)) for i in (count + 1, count)]
    if count and times[0] <= times[1]:
      raise ValueError(
        f"levels begins with {self.levels[0]}, but the first step is not"
        " noisier; pass lower noise levels"
      )

  @property
  def deterministic(self) -> bool:
    return False

  def time(
    self, i: int | Int[Array, ""], num_steps: int | Int[Array, ""]
  ) -> Scalar:
    """The time at which i of num_steps steps remain; 0 for i = 0."""
    i, num_steps = (jnp.asarray(n, jnp.int32) for n in (i, num_steps))
    skipped = int(self.grid == "karras")
    usual = super().time(jnp.where(i > 0, i + skipped, 0), num_steps + skipped)
    if not self.levels:
      return usual
    tau = jnp.array([1.0, *reversed(self.levels)])
    own = self.process.schedule.time(-2 * jnp.log(tau))
    own = jnp.maximum(own, KARRAS_T_MIN).at[0].set(0.0)
    count = len(self.levels)
    mine = (num_steps == count + 1) & (i <= count)
    return jnp.where(mine, own[jnp.minimum(i, count)], usual)

  def predict(
    self, model: Model, x_t: Image, t: Time, s: Time | None = None
  ) -> Prediction:
    """Predicts the end of the trajectory, so the model aims at time 0."""
    return super().predict(model, x_t, t, jnp.zeros_like(t))

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
    new = prediction._replace(eps=jax.random.normal(key, x_t.shape))
    return self.process.arrive(new, s), memory
