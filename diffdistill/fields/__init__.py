"""Plain fields of a config, and how dataclasses are built from them.

Every refusal is one line with the field's path, its value and what to pass.
"""

from typing import Any

Fields = dict[str, Any]


def plain(value: Any) -> Any:
  """Nested dicts, and tuples for lists, of a ConfigDict or stored JSON."""
  if hasattr(value, "items"):
    return {name: plain(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return tuple(plain(item) for item in value)
  return value


def join(path: str, name: str) -> str:
  """The path of a field; the path of the whole config is empty."""
  return f"{path}.{name}" if path else name
