"""The exponential moving average of a trained tree."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from diffdistill.arrays import Params


def ema_update(
  ema: Params, params: Params, decay: float, step: Int[Array, ""]
) -> Params:
  """ema + (1 - d) (params - ema), d = min(decay, (1 + step) / (10 + step)).

  Unlike the papers, which use a constant decay, the decay d rises at first, so
  that the average forgets the first weights quickly. The decay is constant
  after about 10 / (1 - decay) updates.

  Args:
    ema: the average so far.
    params: the weights after update number `step` of this tree, counted from 0.
    decay: the constant, in [0, 1).
    step: a traced int32 scalar.
  """
  d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda e, p: e + (1 - d) * (p - e), ema, params)
