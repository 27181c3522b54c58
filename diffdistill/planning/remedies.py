"""Changes of a config that make a program smaller, from mild to strong."""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

from diffdistill.fields import Fields

# New values for fields of a config, by the path of the field: {"mesh.fsdp":
# 8}.
Remedy = dict[str, Any]

REMAT = "model.network.remat"
_PARTS = (2, 4, 8, 16, 32)


def remedies(config: Fields, stage: str, num_devices: int) -> Iterator[Remedy]:
  """Yields remedies to try: first single changes, then several at once.

  A larger fsdp costs messages; rematerialisation costs a part of a forward pass
  (dots) or all of it (all);
  accumulation costs only that products are smaller; and a teacher in bfloat16
  loses some accuracy.

  Args:
    config: the config of the recipe.
    stage: the stage that does not fit.
    num_devices: the number of devices of the topology.
  """
  fields = config["stages"][stage]
  fsdp = [
    {"mesh.data": -1, "mesh.fsdp": size}
    for size in _sizes(num_devices)
    if size > _fsdp(config, num_devices)
  ]
  if fields.get("kind") == "pairs":
    path, size = f"stages.{stage}.batch_size", fields["batch_size"]
    smaller = [
      {path: size // parts}
      for parts in _PARTS
      if size % (parts * num_devices) == 0
    ]
    yield from fsdp
    yield from smaller
    yield from _joined(fsdp[-1:], smaller)
    return
  network = config["model"]["network"]
  remat = [{REMAT: policy} for policy in _more(network.get("remat"))]
  path, size = f"stages.{stage}.accumulate", fields["batch_size"]
  accumulate = [
    {path: parts}
    for parts in _PARTS
    if parts > fields.get("accumulate", 1) and size % (parts * num_devices) == 0
  ]
  teacher = []
  if "teacher" in fields.get("frozen", {}):
    teacher = [{f"stages.{stage}.teacher_dtype": "bfloat16"}]
  yield from (*fsdp, *remat, *accumulate, *teacher)
  both = _joined(fsdp[-1:], remat)
  yield from both
  most = both[-1:] or [*fsdp[-1:], *remat[-1:]]
  yield from _joined(most, accumulate)
  yield from _joined(_joined(most, accumulate[-1:]) or most, teacher)


def offer(config: Fields) -> Remedy | None:
  """Returns a config's next milder rematerialisation; None if there is none.

  It makes updates faster if the memory of the chips allows it.
  """
  remat = config["model"]["network"].get("remat")
  milder = {"all": "dots", True: "dots", "dots": "none"}.get(remat)
  return None if milder is None else {REMAT: milder}


def _more(remat: bool | str | None) -> tuple[str, ...]:
  """The policies that save more memory; none for a network without any."""
  if remat in (False, "none"):
    return "dots", "all"
  return ("all",) if remat == "dots" else ()


def applied(config: Fields, remedy: Remedy) -> Fields:
  """Returns the config with the new values of a remedy."""
  changed = copy.deepcopy(config)
  for path, value in remedy.items():
    *parents, name = path.split(".")
    fields = changed
    for parent in parents:
      fields = fields.setdefault(parent, {})
    fields[name] = value
  return changed


def flags(remedy: Remedy) -> str:
  """Writes a remedy as flags of the command line."""
  return " ".join(f"--config.{path}={value}" for path, value in remedy.items())


def _joined(first: list[Remedy], second: list[Remedy]) -> list[Remedy]:
  return [{**a, **b} for a, b in itertools.product(first, second)]


def _fsdp(config: Fields, num_devices: int) -> int:
  mesh = config.get("mesh", {})
  size = mesh.get("fsdp", 1)
  return num_devices // max(mesh.get("data", 1), 1) if size == -1 else size


def _sizes(num_devices: int) -> list[int]:
  """Returns sizes of fsdp to try: a machine's eight chips, then all chips."""
  return sorted({n for n in (8, num_devices) if num_devices % n == 0})
