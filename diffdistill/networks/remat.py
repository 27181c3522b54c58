"""Rematerialisation: what a backward pass computes again to save memory.

  none   all values of the forward pass are kept
  dots   the outputs of matrix products and convolutions are kept, and the rest,
         such as norms and activations, is computed again
  all    only the input of each block is kept, at the cost of a forward pass

True and False mean all and none, as in configs that older versions wrote.
"""

import functools
from typing import Any

import flax.linen as nn
import jax

from diffdistill.networks.require import require_known

POLICIES = ("none", "dots", "all")
# The operations whose outputs "dots" keeps.
PRODUCTS = ("dot_general", "conv_general_dilated")


def policy_of(remat: bool | str) -> str:
  """Returns the policy that a field `remat` names.

  Raises:
    ValueError: if there is no policy of this name.
  """
  if isinstance(remat, bool):
    return "all" if remat else "none"
  require_known("remat", remat, POLICIES)
  return remat


@functools.cache
def rematerialised(
  block: type[nn.Module],
  remat: bool | str,
  static_argnums: tuple[int, ...] = (),
  prevent_cse: bool = True,
) -> type[nn.Module]:
  """Makes the class of a block that its backward pass computes again.

  Args:
    block: the class of the block.
    remat: the policy.
    static_argnums, prevent_cse: see jax.checkpoint.
  """
  policy = policy_of(remat)
  if policy == "none":
    return block
  return nn.remat(
    block,
    policy=_keeps_products if policy == "dots" else None,
    static_argnums=static_argnums,
    prevent_cse=prevent_cse,
  )


def checkpointed(function: Any, remat: bool | str) -> Any:
  """Makes a step of a scan that its backward pass computes again."""
  policy = policy_of(remat)
  if policy == "none":
    return function
  return jax.checkpoint(
    function,
    policy=_keeps_products if policy == "dots" else None,
    # The compiler cannot reuse results of the forward pass of a scan.
    prevent_cse=False,
  )


def _keeps_products(operation: Any, *_: Any, **__: Any) -> bool:
  return operation.name in PRODUCTS
