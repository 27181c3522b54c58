"""Checks that all processes run the same command, before anything is compiled.

Processes with different learning rates would train together without an error.
So each process describes what decides its computation: the command and its
config, the code, the libraries and the settings of JAX. Then all compare these
descriptions.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffdistill.fields import plain
from diffdistill.run import environment
from diffdistill.system import hosts

# Messages cut values that are longer than this.
LONGEST = 80


def agree(command: Mapping[str, Any]) -> None:
  """Refuses to continue if another process runs another command.

  Args:
    command: the flags of the command by name, and its config as a ConfigDict or
      as nested plain values.

  Raises:
    ValueError: if processes differ. Every process raises it; the message names
      what differs, and both values.
  """
  facts = {
    **dict(_flat(plain(command))),
    **environment.described(),
    "code (a digest of the package's files)": code_digest(),
  }
  texts = hosts.gathered(json.dumps(facts, sort_keys=True))
  problem = difference([json.loads(text) for text in texts])
  if problem:
    raise ValueError(problem)


def difference(described: list[dict[str, Any]]) -> str:
  """How a process differs from the first one; "" if all are equal."""
  first, *others = described
  for index, other in enumerate(others, start=1):
    for name in sorted(first.keys() | other.keys()):
      if first.get(name) != other.get(name):
        one, two = (_shown(d.get(name, "unset")) for d in (first, other))
        return (
          f"{name} is {one} on process 0 and {two} on process {index}; start"
          " the same command, of the same code, on every host"
        )
  return ""


def code_digest() -> str:
  """16 hexadecimal digits of the source files of this package."""
  folder = Path(__file__).parents[1]
  digest = hashlib.sha256()
  for path in sorted(folder.rglob("*.py")):
    name, text = path.relative_to(folder).as_posix(), path.read_bytes()
    digest.update(f"{name} {len(text)} ".encode() + text)
  return digest.hexdigest()[:16]


def _flat(
  fields: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, str]]:
  for name, value in fields.items():
    if isinstance(value, Mapping) and value:
      yield from _flat(value, f"{path}{name}.")
    else:
      yield f"{path}{name}", repr(value)


def _shown(value: str) -> str:
  """A value as text; a long text is cut, and its digest is added."""
  if len(value) <= LONGEST:
    return value
  digest = hashlib.sha256(value.encode()).hexdigest()[:8]
  return f"{value[:LONGEST]}... (digest {digest})"
