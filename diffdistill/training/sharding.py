"""The mesh, and where each array lives on it.

Batches are split over both axes, data and fsdp; parameters over fsdp alone,
by shape: the largest axis that fsdp divides. Networks carry no annotation.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffdistill.arrays import Batch

AXES = ("data", "fsdp")
# Smaller arrays are cheaper to keep whole on every device than to gather.
MIN_SIZE_TO_SPLIT = 2**16


def make_mesh(
  data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
  """A data x fsdp mesh over all devices; one size may be -1 (the rest).

  Args:
    data, fsdp: its sizes.
    devices: of another machine, to compile for; by default those that are here.

  Raises:
    ValueError: where the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  total = len(devices)
  sizes = [data, fsdp]
  if -1 in sizes:
    known = math.prod(size for size in sizes if size != -1)
    sizes[sizes.index(-1)] = total // known if known > 0 else 0
  if min(sizes) < 1 or math.prod(sizes) != total:
    raise ValueError(
      f"mesh is data={data}, fsdp={fsdp}, but there are {total} devices; pass"
      " sizes whose product is that, or -1 for one of them"
    )
  return jax.make_mesh(
    tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The same value on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over every device."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def tree_shardings(shapes, mesh: Mesh):
  """The sharding of each array in a tree of parameters or state, by shape.

  Args:
    shapes: a tree of anything with a `shape`.
    mesh: from `make_mesh`.

  Returns:
    A tree of NamedSharding of the same structure.
  """
  size = mesh.shape["fsdp"]

  def rule(leaf) -> NamedSharding:
    axes = [i for i, n in enumerate(leaf.shape) if n % size == 0]
    if size == 1 or not axes or math.prod(leaf.shape) < MIN_SIZE_TO_SPLIT:
      return replicated(mesh)
    largest = max(axes, key=lambda i: leaf.shape[i])
    spec = ["fsdp" if i == largest else None for i in range(len(leaf.shape))]
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree.map(rule, shapes)


def process_rows(batch_size: int, mesh: Mesh) -> tuple[int, ...]:
  """The rows of a global batch that this process's devices hold, in order.

  On a torus they are not consecutive: a mesh follows its rings, and a ring
  passes through a host's devices more than once.
  """
  indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  rows = {
    row
    for (rows,) in indices.values()
    for row in range(*rows.indices(batch_size))
  }
  return tuple(sorted(rows))


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> Batch:
  """The rows of `process_rows`, as global arrays over the mesh."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, rows)
    for name, rows in batch.items()
  }
