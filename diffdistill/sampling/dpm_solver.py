"""DPM-Solver++(2M): a second-order sampler of one network pass for each step.

Lu et al. 2022 (DPM-Solver++), Algorithm 2, with lambda = logsnr / 2:

  (1)  h = lambda_s - lambda_t, and h' and D' are h and D of the step before
  (2)  m = D + h / (2 h') (D - D'), D = the predicted x0 at t
  (3)  x_s = (sigma_s / sigma_t) x_t - alpha_s (e^-h - 1) m

(3) is the DDIM step with m in place of x0. The first step has no step before
it, so m = D there. The last step is to s = 0 and returns D.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from diffdistill.arrays import Image, Key, Time
from diffdistill.diffusion.prediction import Model, from_x0
from diffdistill.diffusion.process import expand_like
from diffdistill.sampling.sampler import Memory, Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolver(Sampler):
  """Extrapolates from the last two predictions (DPM-Solver++(2M), Lu 2022)."""

  def memory(self, x: Image) -> Memory:
    """D' and h' of equation (1); h' = 0 means that there is no step before."""
    return jnp.zeros_like(x), jnp.zeros(x.shape[:1])

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
    before, h_before = memory
    x0 = self.predict(model, x_t, t).x0
    schedule = self.process.schedule
    h = 0.5 * (schedule.logsnr(s) - schedule.logsnr(t))
    known = (h_before > 0) & (s > 0)
    share = jnp.where(known, h / jnp.where(known, 2 * h_before, 1.0), 0.0)
    m = x0 + expand_like(share, x_t) * (x0 - before)
    prediction = from_x0(m, x_t, *self.process.coefficients(t, x_t))
    return self.process.ddim(x_t, prediction, t, s), (x0, h)
