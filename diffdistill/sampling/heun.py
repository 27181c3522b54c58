"""Heun's second-order sampler (Karras et al. 2022, Algorithms 1 and 2).

In the scaled variables y = x / alpha and tau = sigma / alpha the
probability-flow equation is dy/dtau = eps, for every schedule.
"""

import dataclasses
import math
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from diffdistill.arrays import Image, Key, Time
from diffdistill.diffusion.prediction import Model
from diffdistill.ranges import Range
from diffdistill.sampling.sampler import Memory, Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun(Sampler):
  """Takes trapezoidal steps of two network passes; the last is an Euler step.

  Use the karras grid on a variance-preserving schedule. At the noisy end of
  such a schedule sigma/alpha is 2e4, too much for one trapezoidal step.

  Args:
    churn, churn_min, churn_max, churn_noise: S_churn, S_min, S_max (of
      sigma/alpha) and S_noise of Algorithm 2; churn = 0 is deterministic.
      Unlike the paper, the raised noise level ends at the schedule's highest.
  """

  grid: str = "karras"
  churn: Annotated[float, Range(0, 10**6)] = 0.0
  churn_min: Annotated[float, Range(0, 10**9)] = 0.0
  churn_max: Annotated[float, Range(0, math.inf)] = math.inf
  churn_noise: Annotated[float, Range(0, 1000)] = 1.0

  evaluations: ClassVar[int] = 2

  def __post_init__(self):
    super().__post_init__()
    if self.churn_min >= self.churn_max:
      raise ValueError(
        f"churn_min is {self.churn_min} and churn_max {self.churn_max}; pass"
        " churn_min < churn_max"
      )
    if self.churn:
      return
    for name in ("churn_min", "churn_max", "churn_noise"):
      if getattr(self, name) != getattr(Heun, name):
        raise ValueError(
          f"{name} is {getattr(self, name)}, but churn is 0 and adds no noise;"
          f" pass a churn above 0, or leave {name} out"
        )

  @property
  def deterministic(self) -> bool:
    return self.churn == 0

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
    if self.churn:
      x_t, t = self._churned(x_t, t, key, num_steps)
    first = self.predict(model, x_t, t)
    euler = self.process.ddim(x_t, first, t, s)
    second = self.predict(model, euler, s)
    alpha_t, sigma_t = self.process.coefficients(t, x_t)
    alpha_s, sigma_s = self.process.coefficients(s, x_t)
    # The trapezoidal step minus the Euler step is
    # alpha_s (tau_s - tau_t) (eps_s - eps_t) / 2.
    difference = sigma_s - alpha_s * sigma_t / alpha_t
    correction = 0.5 * difference * (second.eps - first.eps)
    last = s.reshape((-1, 1, 1, 1)) <= 0
    return jnp.where(last, euler, euler + correction), memory

  def _churned(
    self, x_t: Image, t: Time, key: Key, num_steps: Int[Array, ""]
  ) -> tuple[Image, Time]:
    """Adds noise to x_t; returns it and the time of its new noise level."""
    schedule = self.process.schedule
    tau = schedule.tau(t)
    gamma = jnp.minimum(self.churn / num_steps, jnp.sqrt(2.0) - 1)
    inside = (tau >= self.churn_min) & (tau <= self.churn_max)
    raised = schedule.time(-2 * jnp.log(tau * (1 + gamma)))
    t_hat = jnp.where(inside, jnp.maximum(raised, t), t)
    alpha, sigma = self.process.coefficients(t, x_t)
    alpha_hat, sigma_hat = self.process.coefficients(t_hat, x_t)
    scale = alpha_hat / alpha
    added = jnp.sqrt(jnp.maximum(sigma_hat**2 - (scale * sigma) ** 2, 0.0))
    eps = self.churn_noise * jax.random.normal(key, x_t.shape)
    return scale * x_t + added * eps, t_hat
