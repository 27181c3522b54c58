"""Reads the memory traffic and messages of a program from its compiled text.

XLA's own cost analysis counts the body of a loop once. Here the body counts as
often as the loop runs it. If the compiler does not know how often, as for a
sampler's loop, the body counts once.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

# A chip in a ring of n chips sends this many times (n - 1) / n of the bytes of
# the larger of the operands and the result.
COLLECTIVES = {
  "all-gather": 1.0,
  "all-reduce": 2.0,
  "reduce-scatter": 1.0,
  "all-to-all": 1.0,
  "collective-permute": 1.0,
}
# Instructions that read and write no memory themselves.
_FREE = (
  "parameter",
  "constant",
  "tuple",
  "get-tuple-element",
  "bitcast",
  "while",
  "conditional",
  "call",
  "after-all",
  "partition-id",
  "replica-id",
)
# Instructions that read only as many bytes as they return.
_SLICES = ("slice", "dynamic-slice")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(
  r"\s+(ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$"
)
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
  r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)"
  r"|branch_computations=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
# Matches the groups of chips: {{0,1},{2,3}}, or [groups,size]<=[devices], or
# mesh['a'=2,'b'=4] {'b'}.
_GROUPS = re.compile(
  r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\]"
  r"|mesh\[([^\]]*)\] \{([^}]*)\})"
)
_AXIS = re.compile(r"'([^']+)'(?:=(\d+))?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """All messages of one kind that one chip takes part in during one run.

  Args:
    count: the number of collectives.
    bytes: the bytes of the larger side of each (operands or result), summed.
    sent: the bytes that the chip sends, if messages go around a ring.
  """

  count: float
  bytes: float
  sent: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """The memory traffic and the messages of one chip in one run of a program.

  Args:
    traffic: bytes read from and written to the chip's memory.
    collectives: the messages of each kind that occurs.
  """

  traffic: float
  collectives: Mapping[str, Collective]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Instruction:
  shape: str
  kind: str
  arguments: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool


Computation = dict[str, _Instruction]


def read_program(text: str, num_devices: int) -> Program:
  """Reads the text of an optimised HLO module, as one chip runs it.

  On a TPU, a collective can be split over fusions that run beside it. These
  parts share a channel and count once.

  Args:
    text: the text of the module.
    num_devices: the size of a group, for collectives whose text names no
      groups.
  """
  computations, entry = _parse(text)
  traffic = 0.0
  totals: dict[str, list[float]] = {}
  channels: set[str] = set()
  for name, times, fused in _runs(computations, entry, 1.0, False):
    computation = computations[name]
    for instruction in computation.values():
      kind = instruction.kind.removesuffix("-start")
      if kind not in COLLECTIVES:
        if not fused:
          moved = _traffic(instruction, computation, computations)
          traffic += times * moved
        continue
      channel = _CHANNEL.search(instruction.attributes)
      if name.startswith("all-reduce-scatter"):
        # An all-reduce that is fused with a slice is a reduce-scatter.
        kind = "reduce-scatter"
      elif fused and channel:
        if channel[1] in channels:
          continue
        channels.add(channel[1])
      operands = [computation[o].shape for o in instruction.operands]
      given = sum(_bytes(shape, anywhere=True) for shape in operands)
      made = _bytes(instruction.shape, anywhere=True)
      traffic += times * sum(map(_bytes, (*operands, instruction.shape)))
      if instruction.kind.endswith("-start"):
        made -= given  # the result also holds the operands
        traffic -= times * sum(map(_bytes, operands))
      size = max(given, made)
      n = _group_size(instruction, num_devices)
      share = 1.0 if kind == "collective-permute" else (n - 1) / n
      total = totals.setdefault(kind, [0.0, 0.0, 0.0])
      for i, value in enumerate((1.0, size, COLLECTIVES[kind] * share * size)):
        total[i] += times * value
  return Program(
    traffic=traffic,
    collectives={
      kind: Collective(count=count, bytes=size, sent=sent)
      for kind, (count, size, sent) in sorted(totals.items())
    },
  )


def _parse(text: str) -> tuple[dict[str, Computation], str]:
  """Returns all computations by name, and the name of the entry computation."""
  computations: dict[str, Computation] = {}
  entry, current = "", {}
  for line in text.splitlines():
    if found := _COMPUTATION.match(line):
      current = computations.setdefault(found[2], {})
      entry = found[2] if found[1] else entry
    elif found := _INSTRUCTION.match(line):
      arguments, attributes = _split_at_close(found[5])
      current[found[2]] = _Instruction(
        shape=found[3],
        kind=found[4],
        arguments=arguments,
        operands=tuple(_NAME.findall(arguments)),
        attributes=attributes,
        is_root=found[1] is not None,
      )
  if not entry:
    raise ValueError("this is no text of a compiled program: it has no ENTRY")
  return computations, entry


def _split_at_close(text: str) -> tuple[str, str]:
  """Splits a text at the bracket that closes the operands."""
  depth = 1
  for i, character in enumerate(text):
    depth += {"(": 1, ")": -1}.get(character, 0)
    if not depth:
      return text[:i], text[i + 1 :]
  return text, ""


def _runs(
  computations: Mapping[str, Computation], name: str, times: float, fused: bool
) -> Iterator[tuple[str, float, bool]]:
  """Yields (computation, how often it runs, whether it is inside a fusion)."""
  yield name, times, fused
  for instruction in computations[name].values():
    inside = fused or not (
      instruction.kind in ("while", "conditional", "call")
      or instruction.kind.startswith("async-")
    )
    again = times
    if instruction.kind == "while":
      again *= _trips(instruction, computations)
    for called, branches in _CALLED.findall(instruction.attributes):
      for target in _NAME.findall(branches) or [called]:
        if target in computations:
          yield from _runs(computations, target, again, inside)


def _trips(loop: _Instruction, computations: Mapping[str, Computation]) -> int:
  """Returns how often a loop runs its body; 1 if unknown.

  The CPU compiler writes this number into the text. The TPU compiler does not,
  so only a loop of `lax.scan` is recognised: it counts from 0 by 1 while the
  count is less than a constant.
  """
  known = _TRIPS.search(loop.attributes)
  if known:
    return int(known[1])
  condition = _CONDITION.search(loop.attributes)
  inside = computations.get(condition[1], {}) if condition else {}
  for i in inside.values():
    if i.is_root and i.kind == "compare" and "direction=LT" in i.attributes:
      counter, limit = (inside[name] for name in i.operands)
      if counter.kind == "get-tuple-element" and limit.kind == "constant":
        return int(limit.arguments)
  return 1


def _traffic(
  instruction: _Instruction,
  computation: Computation,
  computations: Mapping[str, Computation],
) -> float:
  """Counts the bytes of the chip's memory that an instruction moves."""
  kind = instruction.kind
  if kind in _FREE or kind.endswith("-done") or kind.startswith("async-"):
    return 0.0
  given = [_bytes(computation[o].shape) for o in instruction.operands]
  made = _bytes(instruction.shape)
  if kind.endswith("-start"):
    # The result holds the operands in addition to the new array.
    return sum(given) + max(made - sum(given), 0.0)
  if kind in _SLICES:
    return 2 * made
  if kind == "dynamic-update-slice":
    return 2 * given[1]
  called = _CALLED.search(instruction.attributes)
  if kind == "fusion" and called and called[1] in computations:
    inside = computations[called[1]]
    return _fusion_traffic(given, instruction.shape, inside)
  return sum(given) + made


def _fusion_traffic(
  given: list[float], shape: str, inside: Computation
) -> float:
  """Counts a fusion's bytes as XLA does, without those of collectives."""
  passed = {
    part
    for i in inside.values()
    if i.kind in COLLECTIVES
    for text in (i.shape, *(inside[o].shape for o in i.operands))
    for part in _parts(text)
  }
  total = 0.0
  for name, parameter in inside.items():
    if parameter.kind != "parameter" or _parts(parameter.shape)[0] in passed:
      continue
    size = given[int(parameter.arguments)]
    users = [i for i in inside.values() if name in i.operands]
    sliced = users and all(
      i.kind in _SLICES and i.operands[0] == name for i in users
    )
    updated = users and all(
      i.kind == "dynamic-update-slice" and i.operands[0] == name for i in users
    )
    if sliced and size:
      total += sum(_bytes(i.shape) for i in users)
    elif not updated:
      total += size
  root = next(i for i in inside.values() if i.is_root)
  while root.kind == "bitcast":
    root = inside[root.operands[0]]
  if root.kind == "dynamic-update-slice" and _bytes(shape):
    return total + _bytes(inside[root.operands[1]].shape)
  return total + sum(_bytes(p) for p in _parts(shape) if p not in passed)


def _parts(shape: str) -> list[str]:
  """Splits the text of a shape into the texts of its arrays."""
  return [found[0] for found in _SHAPE.finditer(shape)] or [shape]


def _bytes(shape: str, *, anywhere: bool = False) -> float:
  """Counts the bytes of a shape's arrays in main memory, or in any memory.

  A layout with another memory space, such as S(1), is in on-chip memory.
  """
  total = 0.0
  for kind, dims, layout in _SHAPE.findall(shape):
    if anywhere or "S(" not in layout:
      total += math.prod(int(d) for d in dims.split(",") if d) * _width(kind)
  return total


def _width(kind: str) -> float:
  """Returns the bytes of one number of a type: bf16, f32, u8, pred, s4, ..."""
  digits = re.search(r"\d+", kind)
  return int(digits[0]) / 8 if digits else float(kind == "pred")


def _group_size(instruction: _Instruction, num_devices: int) -> int:
  found = _GROUPS.search(instruction.attributes)
  if not found:
    return num_devices
  if found[2]:
    return int(found[2])
  if found[3]:
    sizes = dict(_AXIS.findall(found[3]))
    return math.prod(int(sizes[axis]) for axis, _ in _AXIS.findall(found[4]))
  return len(found[1].split(",")) if found[1] else num_devices
