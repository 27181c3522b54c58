"""Reads and changes values in nested fields, by the path to them."""

from collections.abc import Iterator
from typing import Any

from diffdistill.fields import Fields
from diffdistill.run.chosen import AUTO

Path = tuple[str, ...]


def automatic_paths(fields: Fields, path: Path = ()) -> Iterator[Path]:
  """The paths of all fields whose value is "auto"."""
  for name, value in fields.items():
    if isinstance(value, dict):
      yield from automatic_paths(value, (*path, name))
    elif isinstance(value, str) and value == AUTO:
      yield (*path, name)


def at(fields: Fields, path: Path) -> Any:
  """The value at a path in nested fields; None if the path does not exist."""
  value: Any = fields
  for name in path:
    value = value.get(name) if isinstance(value, dict) else None
  return value


def put(fields: Fields, path: Path, value: Any) -> Fields:
  """Returns a copy of nested fields with another value at one path."""
  name, *rest = path
  if rest:
    value = put(fields.get(name) or {}, tuple(rest), value)
  return {**fields, name: value}
