"""Builds dataclasses from the plain fields of a config.

Every error is one line with the path of the field, its value and the remedy.
"""

from typing import Any

Fields = dict[str, Any]


def plain(value: Any) -> Any:
  """Makes nested dicts of a ConfigDict or stored JSON, and tuples of lists."""
  if hasattr(value, "items"):
    return {name: plain(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return tuple(plain(item) for item in value)
  return value


def join(path: str, name: str) -> str:
  """The path of a field in a section; the whole config has an empty path."""
  return f"{path}.{name}" if path else name
