"""The paths and lists that callers of the API pass."""

import os
from collections.abc import Iterable
from typing import Any

from etils import epath

from diffdistill.ranges import brief
from diffdistill.system.places import place

Path = str | os.PathLike[str]


def place_of(name: str, path: Path) -> epath.Path:
  """A path, or an address such as gs://bucket/run, that a caller gave.

  Args:
    name: the name of the caller's argument, for refusals.
    path: the value of the argument.

  Raises:
    ValueError: if it is no path.
  """
  return place(name, os.fspath(path))


def several(name: str, values: Any) -> tuple[Any, ...]:
  """The items of a list or another sequence; a text is none.

  Args:
    name: the name of the argument, for the refusal.
    values: the value of the argument.

  Raises:
    ValueError: if it is a text, or one item alone.
  """
  if isinstance(values, str | bytes | os.PathLike) or not isinstance(
    values, Iterable
  ):
    raise ValueError(f"{name} is {brief(values)}; pass a list of such values")
  return tuple(values)
