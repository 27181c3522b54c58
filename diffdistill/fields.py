"""Plain fields into dataclasses, refusing what does not fit.

Every refusal is one line with the field's path, its value and what to pass.
"""

import dataclasses
import difflib
import typing
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from diffdistill.ranges import SHOWN, Range, brief, check_range

Fields = dict[str, Any]
# No text of a config is longer than a path may be.
LONGEST_TEXT = 4096


def choose(
  path: str, table: Mapping[str, type], fields: Fields, **given: Any
) -> Any:
  """An object of the class that fields["kind"] names in the table."""
  fields = dict(fields)
  kind = fields.pop("kind", None)
  if not isinstance(kind, str) or kind not in table:
    raise ValueError(
      f"{path}.kind is {brief(kind)}; pass one of {', '.join(table)}"
    )
  return make(path, table[kind], fields, **given)


def make(path: str, cls: type, fields: Fields, **given: Any) -> Any:
  """An object of a dataclass, from config fields and what is given by code."""
  known = {
    f.name: f for f in dataclasses.fields(cls) if f.init and f.name not in given
  }
  if "parent" in known:
    # A Linen module's own two fields are no settings.
    del known["parent"], known["name"]
  refuse_unknown(f"{path}.", fields, known)
  for name, field in known.items():
    required = field.default is field.default_factory is dataclasses.MISSING
    if required and name not in fields:
      raise ValueError(f"{path}.{name} is missing; pass a value")
  hints = typing.get_type_hints(cls)
  for name, value in fields.items():
    _check_type(f"{path}.{name}", value, hints[name])
    check_range(f"{path}.{name}", cls, name, value)
  fields = {name: _as(hints[name], value) for name, value in fields.items()}
  try:
    return cls(**fields, **given)
  except (ValueError, TypeError) as error:
    # A stage's refusals say their path themselves.
    message = str(error)
    where = "" if message.startswith(path) else f"{path}: "
    raise ValueError(f"{where}{message}") from error


def read(
  fields: Fields,
  name: str,
  default: Any,
  path: str = "",
  allowed: Range | None = None,
) -> Any:
  """A plain field, of its default's type and in the range that is allowed."""
  value = fields.get(name, default)
  _check_type(f"{path}{name}", value, type(default))
  refusal = allowed and allowed.refusal(value)
  if refusal:
    raise ValueError(f"{path}{name} is {brief(value)}; {refusal}")
  return value


def _check_type(path: str, value: Any, hint: Any) -> None:
  if not _fits(value, hint):
    accepted = typing.get_args(hint) if _is_union(hint) else (hint,)
    names = " or ".join(
      str(kind) if typing.get_origin(kind) else kind.__name__
      for kind in accepted
    )
    raise ValueError(
      f"{path} is {brief(value)} of type {type(value).__name__}; pass {names}"
    )
  for text in _texts(value):
    _check_text(path, text)


def _texts(value: Any) -> Iterator[str]:
  """The texts in a value."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, tuple | Mapping):
    for item in value.values() if isinstance(value, Mapping) else value:
      yield from _texts(item)


def _check_text(path: str, value: str) -> None:
  """Refuses text that no name or path is."""
  if len(value) > LONGEST_TEXT:
    raise ValueError(
      f"{path} is {brief(value)}, a text of {len(value)} letters; pass one of"
      f" {LONGEST_TEXT} or fewer"
    )
  if any(unicodedata.category(letter) == "Cc" for letter in value):
    raise ValueError(
      f"{path} is {brief(value)}, which holds a control character; pass text"
      " of one line"
    )


def _fits(value: Any, hint: Any) -> bool:
  if _is_union(hint):
    return any(_fits(value, kind) for kind in typing.get_args(hint))
  kind, of = typing.get_origin(hint) or hint, typing.get_args(hint)
  if not isinstance(kind, type):
    return False
  if not isinstance(value, (int, float) if kind is float else kind):
    return False
  if isinstance(value, bool) != (kind is bool):
    return False
  if isinstance(value, tuple) and of:  # tuple[int, ...]
    return all(_fits(item, of[0]) for item in value)
  if of and isinstance(value, Mapping):
    return all(_fits(item, of[1]) for item in value.values())
  return True


def _as(hint: Any, value: Any) -> Any:
  """A whole number as a float where the field is one."""
  of = typing.get_args(hint)
  if isinstance(value, tuple) and of:
    return tuple(_as(of[0], item) for item in value)
  return float(value) if hint is float else value


def _is_union(hint: Any) -> bool:
  return typing.get_origin(hint) in (typing.Union, type(int | str))


def refuse_unknown(path: str, fields: Fields, known: Collection[str]) -> None:
  for name in fields:
    if name not in known:
      shown = name if len(name) <= SHOWN and name.isprintable() else brief(name)
      close = difflib.get_close_matches(name, known, n=1)
      remedy = f"did you mean {close[0]}?" if close else "remove it, or pass"
      if not close:
        remedy += f" one of {', '.join(sorted(known))}"
      raise ValueError(f"{path}{shown} is no field; {remedy}")


def section(fields: Fields, name: str, path: str = "") -> Fields:
  section = fields.get(name, {})
  if not isinstance(section, dict):
    raise ValueError(
      f"{path}{name} is {brief(section)}; pass a section with fields of its own"
    )
  return dict(section)


def plain(value: Any) -> Any:
  """Nested dicts, and tuples for lists, of a ConfigDict or stored JSON."""
  if hasattr(value, "items"):
    return {name: plain(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return tuple(plain(item) for item in value)
  return value
