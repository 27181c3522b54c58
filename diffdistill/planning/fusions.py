"""Counts the memory traffic of a fusion: what it reads, and what it writes."""

import math
from collections.abc import Mapping

from diffdistill.planning.hlo_text import (
  CALLED,
  Computation,
  bytes_of,
  parts_of,
)

# A chip in a ring of n chips sends this many times (n - 1) / n of the bytes of
# the larger of the operands and the result.
COLLECTIVES = {
  "all-gather": 1.0,
  "all-reduce": 2.0,
  "reduce-scatter": 1.0,
  "all-to-all": 1.0,
  "collective-permute": 1.0,
}
# Instructions that read only as many bytes as they return.
SLICES = ("slice", "dynamic-slice")


def fusion_traffic(
  given: list[float],
  shape: str,
  inside: Computation,
  computations: Mapping[str, Computation],
) -> float:
  """Counts a fusion's bytes as XLA does, without those of collectives."""
  passed = {
    part
    for i in inside.values()
    if i.kind in COLLECTIVES
    for text in (i.shape, *(inside[o].shape for o in i.operands))
    for part in parts_of(text)
  }
  total = 0.0
  for name, parameter in inside.items():
    if parameter.kind != "parameter" or parts_of(parameter.shape)[0] in passed:
      continue
    size = given[int(parameter.arguments)]
    total += min(size, _read(name, inside, computations))
  root = next(i for i in inside.values() if i.is_root)
  several, parts = root.kind == "tuple", parts_of(shape)
  made = [inside[o] for o in root.operands] if several else [root] * len(parts)
  for output, part in zip(made, parts, strict=False):
    while output.kind == "bitcast":
      output = inside[output.operands[0]]
    if output.kind == "dynamic-update-slice" and bytes_of(part):
      total += bytes_of(inside[output.operands[1]].shape)
    elif part not in passed:
      total += bytes_of(part)
  return total


def _read(
  name: str, inside: Computation, computations: Mapping[str, Computation]
) -> float:
  """Counts the bytes that a fusion reads of an operand; infinity for all."""
  total, users = 0.0, [i for i in inside.values() if name in i.operands]
  for user in users:
    called = CALLED.search(user.attributes)
    if user.kind in SLICES and user.operands[0] == name:
      total += bytes_of(user.shape)
    elif user.kind == "fusion" and called and called[1] in computations:
      nested = computations[called[1]]
      for place, operand in enumerate(user.operands):
        if operand == name:
          (own,) = (
            n
            for n, i in nested.items()
            if i.kind == "parameter" and i.arguments == str(place)
          )
          total += _read(own, nested, computations)
    elif (user.kind, user.operands[0]) != ("dynamic-update-slice", name):
      return math.inf
  return total if users else math.inf
