"""Reads the instructions of a program from its compiled text."""

import dataclasses
import math
import re

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(
  r"\s+(ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$"
)
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
NAME = re.compile(r"%([\w.\-]+)")
CALLED = re.compile(
  r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)"
  r"|branch_computations=\{([^}]*)\}"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
  shape: str
  kind: str
  arguments: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool


Computation = dict[str, Instruction]


def parse(text: str) -> tuple[dict[str, Computation], str]:
  """Returns all computations by name, and the name of the entry computation."""
  computations: dict[str, Computation] = {}
  entry, current = "", {}
  for line in text.splitlines():
    if found := _COMPUTATION.match(line):
      current = computations.setdefault(found[2], {})
      entry = found[2] if found[1] else entry
    elif found := _INSTRUCTION.match(line):
      arguments, attributes = _split_at_close(found[5])
      current[found[2]] = Instruction(
        shape=found[3],
        kind=found[4],
        arguments=arguments,
        operands=tuple(NAME.findall(arguments)),
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


def parts_of(shape: str) -> list[str]:
  """Splits the text of a shape into the texts of its arrays."""
  return [found[0] for found in _SHAPE.finditer(shape)] or [shape]


def bytes_of(shape: str, *, anywhere: bool = False) -> float:
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
