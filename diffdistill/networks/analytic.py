"""The exact denoiser of a Gaussian mixture, a reference for tests.

With x0 ~ sum_k pi_k N(m_k, s_k^2) in d dimensions and x_t = alpha x0 + sigma
eps, Bayes' rule gives, with V_k = alpha^2 s_k^2 + sigma^2,

  (1)  r_k(x)  = softmax_k( log pi_k - d/2 log V_k - |x - alpha m_k|^2 / 2 V_k )
  (2)  E_k(x)  = m_k + (alpha s_k^2 / V_k) (x - alpha m_k)
  (3)  E[x0 | x_t = x] = sum_k r_k(x) E_k(x)

where r_k is the probability that x0 is from component k, and E_k is the mean of
x0 in that case.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import (
  UNCONDITIONAL,
  Condition,
  Image,
  Key,
  Params,
  Time,
)
from diffdistill.ranges import Range, check_ranges


@runtime_checkable
class Coefficients(Protocol):
  """The functions of a noise schedule that `GaussianMixture` calls."""

  def alpha(self, t: Float[Array, "..."]) -> Float[Array, "..."]: ...

  def sigma(self, t: Float[Array, "..."]) -> Float[Array, "..."]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianMixture:
  """A `Network` that outputs the true E[x0 | x_t] of a mixture, equation (3).

  Its parameters are the mixture: {"means": (k, h, w, c), "std": (k,), "logits":
  (k,)}. The logits are log pi up to a constant; a std of zero is a point mass.
  The network reads t itself and outputs x0. So its Denoiser must have the
  output "x0" and a precondition that keeps t: `Identity(noise="time")`.

  Args:
    schedule: gives alpha(t) and sigma(t), elementwise.
    image_shape: (h, w, c) of the means that `init` draws.
    num_components: the number of components that `init` draws.
    std: the standard deviation of every drawn component.
  """

  schedule: Coefficients
  image_shape: tuple[int, int, int] = (1, 1, 2)
  num_components: Annotated[int, Range(1, 10**6)] = 4
  std: Annotated[float, Range(0, 1000)] = 0.1

  def __post_init__(self):
    check_ranges(self)

  @property
  def two_times(self) -> bool:
    return False

  def init(self, key: Key) -> Params:
    """Draws equally likely components, with means uniform in [-1, 1]."""
    shape = (self.num_components, *self.image_shape)
    return {
      "means": jax.random.uniform(key, shape, minval=-1.0, maxval=1.0),
      "std": jnp.full((self.num_components,), self.std),
      "logits": jnp.zeros((self.num_components,)),
    }

  def apply(
    self,
    params: Params,
    x: Image,
    t: Time,
    condition: Condition = UNCONDITIONAL,
    *,
    s: Time | None = None,
    key: Key | None = None,
  ) -> Image:
    """Computes equation (3). A key has no effect: there is no dropout."""
    if s is not None or any(part is not None for part in condition):
      raise ValueError(
        "a Gaussian mixture takes neither condition nor target time; pass"
        " UNCONDITIONAL and s=None"
      )
    # The axes of arrays are images b, components k, and then h, w and c.
    means = params["means"][None]
    alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
    # Both terms are positive, so the sum is precise at t = 0 and at t = 1.
    variance = (alpha[:, None] * params["std"][None]) ** 2 + sigma[:, None] ** 2
    gain = alpha[:, None] * params["std"][None] ** 2 / variance
    difference = x[:, None] - alpha[:, None, None, None, None] * means
    distance = jnp.sum(difference**2, axis=(2, 3, 4))
    dim = x[0].size
    weight = jax.nn.softmax(
      params["logits"][None]
      - 0.5 * dim * jnp.log(variance)
      - 0.5 * distance / variance,
      axis=1,
    )
    expectation = means + gain[:, :, None, None, None] * difference
    return jnp.sum(weight[:, :, None, None, None] * expectation, axis=1)

  def sample(self, params: Mapping[str, Array], key: Key, n: int) -> Image:
    """Draws n random images x0 from the mixture."""
    key_component, key_eps = jax.random.split(key)
    k = jax.random.categorical(key_component, params["logits"], shape=(n,))
    means = params["means"][k]
    eps = jax.random.normal(key_eps, means.shape, means.dtype)
    return means + params["std"][k][:, None, None, None] * eps
