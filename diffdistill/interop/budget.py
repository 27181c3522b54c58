"""Limits the work and memory that a pickle from elsewhere may cost.

A pickle can name one value again and again. So a small file can ask for many
copies of something large, or build containers that share their parts; a program
that walks through these containers meets each shared part many times. The
allowed work is at most proportional to the size of the file.
"""

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any

from diffdistill.interop.pickled_names import Object, RefusalError

# The most instructions of a pickle. Weights need about 50 per tensor.
MAX_OPERATIONS = 5_000_000
# Calls may copy (SHARE * size of the file + FREE) bytes of their arguments.
SHARE, FREE = 8, 1 << 24
ITEM = 64  # The bytes that an item of a list, a set or a dict counts as.
# The most levels of containers within containers. Pickles of NVIDIA's networks
# have about 20.
MAX_DEPTH = 200
# The most values within a file's content. A shared container counts again at
# each place where it occurs.
MAX_PARTS = 10_000_000
MAX_BITS = 256  # the most bits of an integer; torch's magic number has 80
CONTAINERS = (list, tuple, set, dict)


@dataclasses.dataclass
class Budget:
  """Counts the work for a file and the files within it, up to a limit.

  Args:
    size: the size of the file, in bytes.
  """

  size: int
  operations: int = MAX_OPERATIONS
  copied: int = 0

  def count(self) -> None:
    """Counts one instruction.

    Raises:
      RefusalError: if the file has too many instructions.
    """
    self.operations -= 1
    if self.operations < 0:
      raise RefusalError(
        f"has more than {MAX_OPERATIONS:,} instructions, which no file of"
        " weights needs; save its state_dict() alone"
      )

  def copy(self, *values: Any) -> None:
    """Counts a copy of each value, even if the call makes no copy.

    Raises:
      RefusalError: if the copies so far are out of proportion to the file.
    """
    for value in values:
      if isinstance(value, str | bytes):
        self.copied += len(value)
      elif isinstance(value, CONTAINERS):
        self.copied += ITEM * len(value)
    allowed = SHARE * self.size + FREE
    if self.copied > allowed:
      raise RefusalError(
        f"of {self.size:,} bytes asks for copies of more than {allowed:,}"
        " bytes; save its state_dict() alone"
      )


def check_number(value: Any) -> None:
  """Refuses a whole number that is so long that computing with it takes time.

  Raises:
    RefusalError: if the number has more than 256 bits.
  """
  if isinstance(value, int) and value.bit_length() > MAX_BITS:
    raise RefusalError(
      f"has a whole number of more than {MAX_BITS} bits, which no file of"
      " weights needs; save its state_dict()"
    )


def check_parts(content: Any) -> None:
  """Refuses containers that are endless, too deep, or too large when unfolded.

  A program that prints a container meets each shared part wherever it occurs,
  so a small file of lists within lists can take forever. This function looks at
  each part only once.

  Raises:
    RefusalError: if there is such a container.
  """
  # Maps the id of a container to (parts, levels). The value is None while the
  # parts are being counted.
  known: dict[int, tuple[int, int] | None] = {}
  stack: list[tuple[Any, Iterator[Any]]] = [((), iter((content,)))]
  while stack:
    value, rest = stack[-1]
    part = next((p for p in rest if _has_parts(p) and id(p) not in known), None)
    if part is not None:
      if len(stack) > MAX_DEPTH:
        raise RefusalError(
          f"has containers within each other of more than {MAX_DEPTH} levels;"
          " save its state_dict()"
        )
      known[id(part)] = None
      stack.append((part, iter(_parts(part))))
      continue
    stack.pop()
    known[id(value)] = _measured(value, known)


def _measured(
  value: Any, known: dict[int, tuple[int, int] | None]
) -> tuple[int, int]:
  """Counts the values in a container and the levels below it.

  The parts of the container must be counted already. Returns (values, levels).
  """
  parts, levels = 1, 0
  for child in _parts(value):
    found = known[id(child)] if _has_parts(child) else (1, 0)
    if found is None:
      raise RefusalError(
        "has a container that is within itself; save its state_dict()"
      )
    parts, levels = parts + found[0], max(levels, found[1])
  if parts > MAX_PARTS or levels >= MAX_DEPTH:
    raise RefusalError(
      f"has containers that share their parts, and unfold to more than"
      f" {MAX_PARTS:,} parts or {MAX_DEPTH} levels; save its state_dict()"
    )
  return parts, levels + 1


def _has_parts(value: Any) -> bool:
  return isinstance(value, (*CONTAINERS, Object)) and bool(_parts(value))


def _parts(value: Any) -> Collection[Any]:
  """Returns the parts of a container. The keys of a dict are not parts."""
  if isinstance(value, Object):
    return value.state.values()
  return value.values() if isinstance(value, dict) else value
