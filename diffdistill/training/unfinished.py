"""Reads the weights of a round that still trains, while it writes others."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from diffdistill.arrays import Params
from diffdistill.objectives.objective import Objective
from diffdistill.system import hosts
from diffdistill.training import stored
from diffdistill.training.optimizers import EMA
from diffdistill.training.running import STATE, digests_of, steps_in
from diffdistill.training.sharding import Layout


def newest_step(round_dir: epath.Path) -> int:
  """The updates of the newest checkpoint; 0 if there is none."""
  return next(iter(steps_in(round_dir / "checkpoints")), 0)


def load_product(
  round_dir: epath.Path, step: int, objective: Objective, layout: Layout
) -> Params:
  """Loads from a checkpoint the weights that the round would hand on.

  They are the weights of `averaged_weights.product_of`. Nothing else of the
  checkpoint is read.

  Args:
    round_dir: the round's directory.
    step: the number of updates of the checkpoint.
    objective: the objective of the round.
    layout: how the weights are split over the devices.

  Raises:
    ValueError: if the checkpoint is damaged, or the training has removed it.
  """
  folder = round_dir / "checkpoints"
  digests = hosts.on_first(lambda: digests_of(folder, step))
  name, _, average = objective.product.partition("/")
  path = ("averages", name, average or EMA)
  found = _below(path, digests)
  if not found:
    path = ("params", name)
    found = _below(path, digests)
  shapes = stored.shapes_like(found, layout)
  for key in reversed(path):
    found, shapes = {key: found}, {key: shapes}
  tree = stored.load(
    folder / str(step), STATE, shapes, expected=found, whole=False
  )
  for key in path:
    tree = tree[key]
  return tree


def _below(path: tuple[str, ...], digests: Mapping[str, str]) -> dict[str, Any]:
  """The digests below a path, as a tree, from digests by their whole names."""
  result: dict[str, Any] = {}
  for name, digest in digests.items():
    keys = tuple(name.split("/"))
    if keys[: len(path)] != path:
      continue
    place = result
    for key in keys[len(path) : -1]:
      place = place.setdefault(key, {})
    place[keys[-1]] = digest
  return result
