"""Reads the memory traffic and messages of a program from its compiled text.

XLA's own cost analysis counts the body of a loop once. Here the body counts as
often as the loop runs it. If the compiler does not know how often, as for a
sampler's loop, the body counts once.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

from diffdistill.planning.fusions import COLLECTIVES, SLICES, fusion_traffic
from diffdistill.planning.hlo_text import (
  CALLED,
  NAME,
  Computation,
  Instruction,
  bytes_of,
  parse,
)

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


def read_program(text: str, num_devices: int) -> Program:
  """Reads the text of an optimised HLO module, as one chip runs it.

  On a TPU, a collective can be split over fusions that run beside it. These
  parts share a channel and count once.

  Args:
    text: the text of the module.
    num_devices: the size of a group of a collective that names no groups.
  """
  computations, entry = parse(text)
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
      given = sum(bytes_of(shape, anywhere=True) for shape in operands)
      made = bytes_of(instruction.shape, anywhere=True)
      traffic += times * sum(map(bytes_of, (*operands, instruction.shape)))
      if instruction.kind.endswith("-start"):
        made -= given  # the result also holds the operands
        traffic -= times * sum(map(bytes_of, operands))
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
    for called, branches in CALLED.findall(instruction.attributes):
      for target in NAME.findall(branches) or [called]:
        if target in computations:
          yield from _runs(computations, target, again, inside)


def _trips(loop: Instruction, computations: Mapping[str, Computation]) -> int:
  """Returns how often a loop runs its body; 1 if unknown.

  The CPU compiler writes this number into the text. For TPUs, only a loop of
  `lax.scan` is recognised, which counts from 0 by 1 up to a constant.
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
  instruction: Instruction,
  computation: Computation,
  computations: Mapping[str, Computation],
) -> float:
  """Counts the bytes of the chip's memory that an instruction moves."""
  kind = instruction.kind
  if kind in _FREE or kind.endswith("-done") or kind.startswith("async-"):
    return 0.0
  given = [bytes_of(computation[o].shape) for o in instruction.operands]
  made = bytes_of(instruction.shape)
  if kind.endswith("-start"):
    # The result holds the operands in addition to the new array.
    return sum(given) + max(made - sum(given), 0.0)
  if kind in SLICES:
    return 2 * made
  if kind == "dynamic-update-slice":
    return 2 * given[1]
  called = CALLED.search(instruction.attributes)
  if kind == "fusion" and called and called[1] in computations:
    inside = computations[called[1]]
    return fusion_traffic(given, instruction.shape, inside, computations)
  return sum(given) + made


def _group_size(instruction: Instruction, num_devices: int) -> int:
  found = _GROUPS.search(instruction.attributes)
  if not found:
    return num_devices
  if found[2]:
    return int(found[2])
  if found[3]:
    sizes = dict(_AXIS.findall(found[3]))
    return math.prod(int(sizes[axis]) for axis, _ in _AXIS.findall(found[4]))
  return len(found[1].split(",")) if found[1] else num_devices
