"""Divides a tree of arrays into parts that are read one after the other."""

import math
from collections.abc import Iterator
from typing import Any

import jax

# Arrays are read back from the disk in parts of about this many bytes.
BYTES_AT_ONCE = 2**28


def parts(shapes: Any) -> Iterator[Any]:
  """Divides a tree into parts.

  Each part has some leaves, and `...` for the others.
  """
  leaves, structure = jax.tree.flatten(shapes)
  chosen: list[int] = []
  size = 0
  for i, leaf in enumerate(leaves):
    chosen.append(i)
    size += math.prod(leaf.shape) * leaf.dtype.itemsize
    if size >= BYTES_AT_ONCE or i == len(leaves) - 1:
      part = [x if j in chosen else ... for j, x in enumerate(leaves)]
      yield jax.tree.unflatten(structure, part)
      chosen, size = [], 0
