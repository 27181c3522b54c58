"""A short name of a tree of weights, the same on every mesh."""

import hashlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from diffdistill.arrays import Params

# Odd: neighbours in an array weigh differently, modulo 2^32.
MULTIPLIER = 0x9E3779B1


def fingerprint(params: Params) -> str:
  """16 hexadecimal digits of all bits of all weights, and of their names.

  Sums modulo 2^32 are exact in any order, so neither the mesh nor the number of
  processes matters, and nothing large leaves the devices.
  """
  sums = jax.device_get(_sums(params))
  digest = hashlib.sha256()
  for path, total in jax.tree_util.tree_leaves_with_path(sums):
    digest.update(f"{jax.tree_util.keystr(path)}={int(total)};".encode())
  return digest.hexdigest()[:16]


@jax.jit
def _sums(params: Params) -> Params:
  return jax.tree.map(_weighted_sum, params)


def _weighted_sum(leaf: Array) -> UInt32[Array, ""]:
  """The sum over elements of bits times an odd number of the position."""
  bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
  bits = bits.reshape(-1)
  position = jnp.arange(bits.size, dtype=jnp.uint32)
  odd = 2 * position * jnp.uint32(MULTIPLIER) + 1
  return jnp.sum(bits * odd, dtype=jnp.uint32)
