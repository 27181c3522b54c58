"""A short name of a tree of weights, the same on every mesh."""

import hashlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from diffdistill.arrays import Params

# Of a hash of 32 bits: each place's bits are mixed with the place, so that
# neither swapped values nor flipped signs leave the sum as it was.
PLACE = 0x9E3779B1
ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B))


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
  return jax.tree.map(_hash, params)


def _hash(leaf: Array) -> UInt32[Array, ""]:
  """The sum over elements of a hash of their bits and their place."""
  bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
  bits = bits.reshape(-1)
  mixed = bits + jnp.arange(bits.size, dtype=jnp.uint32) * jnp.uint32(PLACE)
  for shift, factor in ROUNDS:
    mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
  return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)
