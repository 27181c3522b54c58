"""Short hashes of arrays and of trees of weights, the same on every mesh."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from diffdistill.arrays import Params

# These are constants of a 32-bit hash. The hash mixes the bits of each element
# with the position of the element in its array. So the sum of the hashes
# changes if two values are swapped or two signs are flipped.
PLACE = 0x9E3779B1
ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B))
# How many elements the host hashes at a time.
BLOCK = 2**22


def fingerprint(params: Params) -> str:
  """Returns 16 hexadecimal digits that depend on all weights and their names.

  Sums modulo 2^32 are exact in any order. So the result is the same on every
  mesh and with any number of processes, and no large array leaves the devices.
  """
  digest = hashlib.sha256()
  for path, total in jax.tree_util.tree_leaves_with_path(_sums(params)):
    digest.update(f"{jax.tree_util.keystr(path)}={int(total)};".encode())
  return digest.hexdigest()[:16]


def digests(tree: Any) -> Any:
  """Returns the tree with a string for each array: its type, shape and hash.

  Every process must call this, because the sums include all devices.

  Args:
    tree: arrays of any kind, on devices or on the host.

  Returns:
    Strings such as "float32 8,8 00c0ffee". If one bit of an array changes, its
    string changes.
  """
  return jax.tree.map(
    lambda leaf, total: (
      f"{leaf.dtype} {','.join(map(str, leaf.shape))} {int(total):08x}"
    ),
    tree,
    _sums(tree),
  )


def described(digest: str) -> jax.ShapeDtypeStruct:
  """Reads the type and the shape from one of the strings of `digests`."""
  dtype, shape, _ = digest.split(" ")
  sizes = tuple(int(size) for size in shape.split(",") if size)
  return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))


def by_name(tree: Any) -> dict[str, Any]:
  """Lists the leaves of a tree by their path, such as "student/dense/kernel".

  A tree and its copy in JSON or in Orbax have the same names, although the
  classes of their nodes differ.
  """
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _sums(tree: Any) -> Any:
  """Computes the hash of each array; all devices compute at the same time."""
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


# Compile a function for one array at a time. A tree has few different shapes,
# so few functions are compiled.
@jax.jit
def _on_device(leaf: Array) -> UInt32[Array, ""]:
  """Sums a hash of the bits and the position of each element, on the device."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  if leaf.dtype == jnp.bool_:
    bits = leaf.astype(jnp.uint32)
  else:
    # Split elements of 8 bytes into two elements of 4 bytes, on a new last
    # axis.
    unsigned = jnp.dtype(f"uint{8 * min(leaf.dtype.itemsize, 4)}")
    bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
  # Do not flatten the array, so that a split array stays split.
  place, stride = jnp.uint32(0), 1
  for axis in reversed(range(bits.ndim)):
    iota = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    place = iota * jnp.uint32(stride % 2**32) + place
    stride *= bits.shape[axis]
  return jnp.sum(_mixed(bits, place), dtype=jnp.uint32)


def _on_host(array: np.ndarray) -> np.uint32:
  """Computes the same sum as `_on_device`, but on the host."""
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
  """Hashes each element.

  At one position, two different values never have the same hash.
  """
  mixed = bits + place * np.uint32(PLACE)
  for shift, factor in ROUNDS:
    mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
  return mixed ^ (mixed >> np.uint32(16))
