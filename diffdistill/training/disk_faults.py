"""Faults of a disk that a person can mend, said in one line.

A storage library has kinds of errors of its own, and raises some of them long
after the write that failed; what all of them repeat is the system's own words.
"""

from collections.abc import Callable
from typing import TypeVar

from etils import epath

T = TypeVar("T")

# What a system says that a person can mend, in any library's words.
MENDABLE = {
  "No space left on device": "the disk is full; free some space",
  "Disk quota exceeded": "the disk quota is used up; free some space",
  "Read-only file system": "the disk is read-only; make it writable",
  "Permission denied": "writing is not permitted; permit it",
  "Not a directory": "a file is where a folder should be; move it away",
  "File exists": "a file is where a folder should be; move it away",
  "No such file or directory": "the folder is gone; bring it back",
  "Stale file handle": "the disk is gone; bring it back",
  "File too large": "a file may not become so large; raise the limit",
  "Input/output error": "the disk fails; mend it",
}


def mendable(folder: epath.Path, act: Callable[[], T]) -> T:
  """Does it; an error that a person can mend becomes one line.

  Raises:
    ValueError: where the system said no.
  """
  try:
    return act()
  except Exception as error:
    said = _said(error)
    for words, remedy in MENDABLE.items():
      if words in said:
        raise ValueError(
          f"{folder} cannot be written: {remedy}, and run the command again;"
          " what was saved before is kept"
        ) from error
    raise


def _said(error: BaseException | None) -> str:
  """All that an error says, and those that it came from."""
  said = []
  while error is not None:
    said.append(str(error))
    if isinstance(error, BaseExceptionGroup):
      said += [_said(inner) for inner in error.exceptions]
    error = error.__cause__ or error.__context__
  return " ".join(said)
