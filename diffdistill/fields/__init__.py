"""Builds dataclasses from the plain fields of a config.

Every error is one line with the path of the field, its value and the remedy.
"""

from typing import Any

Fields = dict[str, Any]


def plain(value: Any) -> Any:
  """A ConfigDict or stored JSON as nested dicts, with tuples for lists."""
  if hasattr(value, "items"):
    return {name: plain(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return tuple(plain(item) for item in value)
  return value


def join(path: str, name: str) -> str:
  """The path of a field; the path of the whole config is empty."""
  return f"{path}.{name}" if path else name
