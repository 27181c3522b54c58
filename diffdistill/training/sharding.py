"""The mesh, and where each array lies on it.

Batches are split over both axes of the mesh, data and fsdp. By default,
parameters are split over fsdp, along the largest axis that fsdp divides. The
layout can name another axis for a parameter, by the path of the parameter. The
code of the networks does not say how its arrays are split.

There are three kinds of trees: frozen weights, trained weights, and what only
the optimizer reads and writes: its moments, the moving averages and the
gradients. The layout says for each kind over which axes of the mesh it is
split. If weights are whole and the optimizer is split over all devices (ZeRO,
Rajbhandari et al. 2020, stages 1 and 2), a pass sends no weights; an update
sums each gradient on the device that needs it, and sends the new weights once.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffdistill.arrays import Batch

AXES = ("data", "fsdp")
FROZEN, TRAINED, OPTIMIZER = "frozen", "trained", "optimizer"
# The axes of the mesh over which a kind of tree can be split, by name.
SPLITS: Mapping[str, tuple[str, ...]] = {
  "none": (),
  "fsdp": ("fsdp",),
  "all": AXES,
}
# An array with fewer elements is not split: updates are faster if every device
# keeps the whole array.
MIN_SIZE_TO_SPLIT = 2**16


def make_mesh(
  data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
  """A data x fsdp mesh over all devices.

  Neighbours on the mesh are neighbours in the network of devices. If there are
  several slices (for GPUs, hosts), only the data axis crosses the slow network
  between them.

  Args:
    data, fsdp: the sizes of the mesh's axes. If one size is -1, that axis takes
      the devices that the other axis leaves; if both are -1, fsdp is a whole
      slice.
    devices: the devices of another machine, to compile for; by default the
      devices of this machine.

  Raises:
    ValueError: if the product of the sizes is not the number of devices, or if
      fsdp does not divide the number of devices of a slice.
  """
  devices = jax.devices() if devices is None else list(devices)
  total = len(devices)
  slices = Counter(map(_slice_of, devices))
  of_slice = min(slices.values())
  sizes = [data, fsdp]
  if sizes == [-1, -1]:
    sizes = [len(slices), of_slice]
  elif -1 in sizes:
    known = math.prod(size for size in sizes if size != -1)
    sizes[sizes.index(-1)] = total // known if known > 0 else 0
  if min(sizes) < 1 or math.prod(sizes) != total:
    raise ValueError(
      f"mesh is data={data}, fsdp={fsdp}, but there are {total} devices; pass"
      " sizes whose product is that, or -1 for one of them"
    )
  if of_slice != max(slices.values()):
    raise ValueError(
      f"the {len(slices)} slices have {sorted(slices.values())} devices; start"
      " with as many in each"
    )
  if of_slice % sizes[1]:
    raise ValueError(
      f"mesh.fsdp is {sizes[1]}, which does not divide the {of_slice} devices"
      f" of each of {len(slices)} slices; pass one that does"
    )
  if len(slices) > 1:
    ordered = mesh_utils.create_hybrid_device_mesh(
      (of_slice // sizes[1], sizes[1]),
      (len(slices), 1),
      devices,
      process_is_granule=not hasattr(devices[0], "slice_index"),
      allow_split_physical_axes=True,
    )
  else:
    ordered = mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
  return Mesh(ordered, AXES, axis_types=(AxisType.Auto,) * 2)


def _slice_of(device: Any) -> int:
  """Returns the slice of a device; for a GPU that names no slice, its host."""
  host = device.process_index if device.platform == "gpu" else 0
  return getattr(device, "slice_index", host)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """A mesh, and overrides that split some parameters along another axis.

  Args:
    mesh: the mesh, from `make_mesh`.
    overrides: pairs of a regular expression and an axis. A parameter is split
      along the axis of the first expression that is found in its path, such as
      "conv_out/kernel"; axis -1 keeps it whole on every device. The moments and
      averages of a parameter are split in the same way.
    frozen, trained, optimizer: over what each kind of tree is split: "none",
      "fsdp", or "all" for all devices.
  """

  mesh: Mesh
  overrides: tuple[tuple[str, int], ...] = ()
  frozen: str = "fsdp"
  trained: str = "fsdp"
  optimizer: str = "fsdp"

  def __post_init__(self):
    for kind in (FROZEN, TRAINED, OPTIMIZER):
      split = getattr(self, kind)
      if split not in SPLITS:
        raise ValueError(
          f"mesh.{kind} is {split!r}; pass one of {', '.join(SPLITS)}"
        )
    for expression, _ in self.overrides:
      try:
        re.compile(expression)
      except re.error as error:
        raise ValueError(
          f"mesh.overrides has {expression!r}, which is no regular expression"
          f" ({error}); pass one such as 'conv_out/kernel'"
        ) from error

  def override(self, path: str) -> tuple[str, int] | None:
    """Finds the override for the path of a parameter; None if there is none."""
    found = (o for o in self.overrides if path and re.search(o[0], path))
    return next(found, None)

  def check(self, trees: Sequence[Any]) -> None:
    """Refuses overrides that do not fit the parameters of the run.

    Args:
      trees: the parameters of each network, or their shapes.

    Raises:
      ValueError: if an override names an axis that does not exist or that fsdp
        does not divide, or if it matches no parameter.
    """
    used = set()
    for tree in trees:
      for kind in (FROZEN, TRAINED, OPTIMIZER):
        tree_shardings(tree, self, kind)
      for path, _ in jax.tree.leaves_with_path(tree):
        used.add(self.override(parameter_path(path)))
    for override in self.overrides:
      if override not in used:
        raise ValueError(
          f"mesh.overrides has {override[0]!r}, which is found in no parameter"
          " that an earlier one leaves; remove it, or pass part of a path such"
          " as 'conv_out/kernel'"
        )


def unrolled(mesh: Mesh) -> bool:
  """Whether to unroll a loop over gradients on this mesh.

  XLA for CPUs uses its fast convolutions only outside of loops; in a `scan`,
  the gradients of convolutions were 70 times slower.
  """
  return mesh.devices.flat[0].platform == "cpu"


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch whose rows are split over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def tree_shardings(shapes: Any, layout: Layout, kind: str = FROZEN) -> Any:
  """Returns the sharding of each array in a tree of parameters or moments.

  An array that all devices cannot share equally is split over fsdp alone.

  Args:
    shapes: a tree of objects that have a `shape`.
    layout: the mesh and its overrides.
    kind: the kind of the tree, a field of the layout.

  Returns:
    A tree of NamedSharding of the same structure.

  Raises:
    ValueError: if an override names an axis that cannot be split.
  """
  wanted = SPLITS[getattr(layout, kind)]
  # Try the last axes alone if all of them together divide no axis.
  tries = [wanted[i:] for i in range(len(wanted))]

  def rule(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    shape = leaf.shape
    override = layout.override(parameter_path(path))
    if override is not None:
      axis, fsdp = override[1], layout.mesh.shape["fsdp"]
      if not -1 <= axis < len(shape) or (axis >= 0 and shape[axis] % fsdp):
        raise ValueError(
          f"mesh.overrides has {override!r}, but {parameter_path(path)} is of"
          f" shape {shape}; pass an axis that fsdp={fsdp} divides, or -1 to"
          " keep it whole"
        )
      allowed = [axis] if axis >= 0 else []
    else:
      small = math.prod(shape) < MIN_SIZE_TO_SPLIT
      allowed = [] if small else list(range(len(shape)))
    for names in tries:
      size = math.prod(layout.mesh.shape[name] for name in names)
      axes = [i for i in allowed if shape[i] % size == 0]
      if size > 1 and axes:
        axis = max(axes, key=lambda i: shape[i])
        over = names if len(names) > 1 else names[0]
        spec = [over if i == axis else None for i in range(len(shape))]
        return NamedSharding(layout.mesh, PartitionSpec(*spec))
    return replicated(layout.mesh)

  return jax.tree.map_with_path(rule, shapes)


def parameter_path(path: tuple[Any, ...]) -> str:
  """Returns the path of a parameter in its tree, such as "conv_out/kernel".

  Trees of parameters are dicts. An optimizer's state holds them inside tuples,
  which are not part of the path.
  """
  names: list[str] = []
  for entry in reversed(path):
    if not isinstance(entry, jax.tree_util.DictKey):
      break
    names.append(str(entry.key))
  return "/".join(reversed(names))


def process_rows(batch_size: int, mesh: Mesh) -> tuple[int, ...]:
  """Lists the rows of a global batch that the devices of this process hold.

  The rows are in order. On a torus they are not consecutive, because the mesh
  follows its rings, and a ring passes through a host more than once.
  """
  sharding: Any = batch_sharding(mesh)
  indices = sharding.addressable_devices_indices_map((batch_size,))
  rows = {
    row
    for (rows,) in indices.values()
    for row in range(*rows.indices(batch_size))
  }
  return tuple(sorted(rows))


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> Batch:
  """Makes global arrays on the mesh from this process's rows of a batch."""
  return _placed(batch, batch_sharding(mesh))


def shard_batches(
  batches: Sequence[Mapping[str, np.ndarray]], mesh: Mesh
) -> Batch:
  """Stacks several batches on a first axis, and places them on the mesh.

  Each batch is placed as `shard_batch` places one batch.
  """
  stacked = {
    name: np.stack([batch[name] for batch in batches]) for name in batches[0]
  }
  return _placed(stacked, NamedSharding(mesh, PartitionSpec(None, AXES)))


def _placed(arrays: Mapping[str, np.ndarray], sharding: NamedSharding) -> Batch:
  return {
    name: jax.make_array_from_process_local_data(sharding, rows)
    for name, rows in arrays.items()
  }
