"""Refuses a value of the wrong type, and text that cannot be a name or path."""

import types
import typing
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from diffdistill.ranges import brief

# Linux allows paths of this length; no other text of a config is longer.
LONGEST_TEXT = 4096


def check_type(path: str, value: Any, hint: Any) -> None:
  """Refuses a value that is not of the hint's type.

  Args:
    path: the path of the field, for the message.
    value: the value of the field.
    hint: int, float, bool, str, or tuples, mappings and unions of these.

  Raises:
    ValueError: if the value has another type, or holds text that is too long or
      has control characters.
  """
  if not _fits(value, hint):
    names = " or ".join(
      str(kind) if typing.get_origin(kind) else kind.__name__
      for kind in alternatives(hint)
    )
    raise ValueError(
      f"{path} is {brief(value)} of type {type(value).__name__}; pass {names}"
    )
  for text in _texts(value):
    _check_text(path, text)


def converted(value: Any, hint: Any) -> Any:
  """Returns the value; whole numbers become floats if the hint says float."""
  if isinstance(value, tuple):
    hints = _of_items(value, hint)
    return tuple(map(converted, value, hints)) if hints else value
  options = alternatives(hint)
  is_whole = isinstance(value, int) and not isinstance(value, bool)
  if is_whole and float in options and int not in options:
    return float(value)
  return value


def alternatives(hint: Any) -> tuple[Any, ...]:
  """The types of a union; for any other hint, the hint alone."""
  is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
  return typing.get_args(hint) if is_union else (hint,)


def _fits(value: Any, hint: Any) -> bool:
  options = alternatives(hint)
  if len(options) > 1:
    return any(_fits(value, option) for option in options)
  if hint is Any:
    return True
  kind = typing.get_origin(hint) or hint
  if not isinstance(kind, type):
    return False
  if not isinstance(value, (int, float) if kind is float else kind):
    return False
  if isinstance(value, bool) != (kind is bool):
    return False
  if isinstance(value, tuple):
    hints = _of_items(value, hint)
    return hints is None or (
      len(hints) == len(value) and all(map(_fits, value, hints))
    )
  if isinstance(value, Mapping) and typing.get_args(hint):
    _, of = typing.get_args(hint)
    return all(_fits(item, of) for item in value.values())
  return True


def _of_items(value: tuple[Any, ...], hint: Any) -> tuple[Any, ...] | None:
  """The hint of each item of a tuple; None if the tuple's hint has none."""
  of = typing.get_args(hint)
  if len(of) == 2 and of[1] is Ellipsis:
    return (of[0],) * len(value)
  return of or None


def _texts(value: Any) -> Iterator[str]:
  """All texts that a value holds, also inside tuples and mappings."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, tuple | Mapping):
    for item in value.values() if isinstance(value, Mapping) else value:
      yield from _texts(item)


def _check_text(path: str, value: str) -> None:
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
