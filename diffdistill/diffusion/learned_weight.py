"""A weighting of noise levels that is learned with the network.

  (1)  L = e / exp(lv(t)) + lv(t), where e is the error of an example

At each noise level, L is smallest if exp(lv) is the mean of e. Then e / exp(lv)
has the mean 1, so all noise levels count equally (Karras et al. 2024, EDM2,
whose u is this lv).
"""

import dataclasses
import math
from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import Key, Params
from diffdistill.ranges import Range, check_ranges

# The noise levels log(sigma/alpha) over which lv varies; it is flat beyond.
LEVELS = (-8.0, 8.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedWeight:
  """The function lv, a sum of cosines of log(sigma/alpha), zero at first.

  Karras et al. 2024 use random frequencies; these are k pi / 16.

  Args:
    count: the number of cosines; the first is constant.
  """

  count: Annotated[int, Range(1, 10**4)] = 32

  def __post_init__(self):
    check_ranges(self)

  def init(self, key: Key) -> Params:
    """Makes the weights, which are zero; the key has no effect."""
    return {"cosines": jnp.zeros(self.count)}

  def apply(
    self, params: Params, logsnr: Float[Array, " b"]
  ) -> Float[Array, " b"]:
    """Computes lv at each noise level."""
    low, high = LEVELS
    place = (jnp.clip(-logsnr / 2, low, high) - low) / (high - low)
    waves = jnp.arange(self.count) * math.pi
    return jnp.cos(place[:, None] * waves[None]) @ params["cosines"]
