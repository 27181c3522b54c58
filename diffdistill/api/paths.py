"""The paths that callers of the API pass."""

import os

from etils import epath

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
