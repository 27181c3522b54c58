"""Short names of arrays and of trees of weights, the same on every mesh."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from diffdistill.arrays import Params

# Of a hash of 32 bits: each place's bits are mixed with the place, so that
# neither swapped values nor flipped signs leave the sum as it was.
PLACE = 0x9E3779B1
ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B))
# Elements that a host hashes at once.
BLOCK = 2**22


def fingerprint(params: Params) -> str:
  """16 hexadecimal digits of all bits of all weights, and of their names.

  Sums modulo 2^32 are exact in any order, so neither the mesh nor the number of
  processes matters, and nothing large leaves the devices.
  """
  digest = hashlib.sha256()
  for path, total in jax.tree_util.tree_leaves_with_path(_sums(params)):
    digest.update(f"{jax.tree_util.keystr(path)}={int(total)};".encode())
  return digest.hexdigest()[:16]


def digests(tree: Any) -> Any:
  """The same tree with words in place of its arrays: type, shape and hash.

  Every process of a run calls this alike, as its sums are over all devices.

  Args:
    tree: arrays of any kind, on devices or on the host.

  Returns:
    Strings such as "float32 8,8 00c0ffee"; a change of one bit changes one.
  """
  return jax.tree.map(
    lambda leaf, total: (
      f"{leaf.dtype} {','.join(map(str, leaf.shape))} {int(total):08x}"
    ),
    tree,
    _sums(tree),
  )


def described(digest: str) -> jax.ShapeDtypeStruct:
  """The type and the shape in one of the strings of `digests`."""
  dtype, shape, _ = digest.split(" ")
  sizes = tuple(int(size) for size in shape.split(",") if size)
  return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))


def by_name(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by their path, such as "student/dense/kernel".

  The classes of its nodes do not matter: as JSON or Orbax has it, a tree has
  the same names.
  """
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _sums(tree: Any) -> Any:
  """The hash of each array; those on devices are all under way at once."""
  return jax.device_get(
    jax.tree.map(
      lambda leaf: (
        _on_device(leaf)
        if isinstance(leaf, jax.Array)
        else _on_host(np.asarray(leaf))
      ),
      tree,
    )
  )


# An array at a time: a few shapes are all that a tree's arrays have.
@jax.jit
def _on_device(leaf: Array) -> UInt32[Array, ""]:
  """The sum over elements of a hash of their bits and their place."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  if leaf.dtype == jnp.bool_:
    bits = leaf.astype(jnp.uint32)
  else:
    # Of 8 bytes it makes two of 4, in a last axis of their own.
    unsigned = jnp.dtype(f"uint{8 * min(leaf.dtype.itemsize, 4)}")
    bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
  # Not flattened, so that what is split over devices stays where it is.
  place, stride = jnp.uint32(0), 1
  for axis in reversed(range(bits.ndim)):
    iota = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    place = iota * jnp.uint32(stride % 2**32) + place
    stride *= bits.shape[axis]
  return jnp.sum(_mixed(bits, place), dtype=jnp.uint32)


def _on_host(array: np.ndarray) -> np.uint32:
  """The same sum, without any device."""
  if array.dtype != np.bool_:
    unsigned = f"uint{8 * min(array.dtype.itemsize, 4)}"
    array = np.ascontiguousarray(array).reshape(-1).view(unsigned)
  flat, total = array.reshape(-1), 0
  for first in range(0, flat.size, BLOCK):
    bits = flat[first : first + BLOCK].astype(np.uint32)
    place = np.arange(first, first + bits.size, dtype=np.uint64)
    mixed = _mixed(bits, place.astype(np.uint32))
    total += int(np.sum(mixed, dtype=np.uint64))
  return np.uint32(total % 2**32)


def _mixed(bits: Any, place: Any) -> Any:
  """Each element's hash; of one element, two values never have the same."""
  mixed = bits + place * np.uint32(PLACE)
  for shift, factor in ROUNDS:
    mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
  return mixed ^ (mixed >> np.uint32(16))
