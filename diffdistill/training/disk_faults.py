"""Disk errors that a person can repair, each told in one line.

A storage library raises errors of its own classes, and some of them long after
the write that failed. All of them repeat the operating system's message, so
this file searches for the message.
"""

from collections.abc import Callable
from typing import TypeVar

from etils import epath

from diffdistill.system import bucket_faults
from diffdistill.system.bucket_faults import BucketError
from diffdistill.system.files import in_bucket

T = TypeVar("T")

# Texts in the operating system's messages, and the remedy for each.
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
  """Calls `act`; explains a disk error that a person can repair in one line.

  Args:
    folder: the folder that the message names.
    act: a function that writes or reads in that folder.

  Raises:
    ValueError: if the error is one that a person can repair.
  """
  try:
    return act()
  except Exception as error:
    if in_bucket(folder) and (line := bucket_faults.fault(error)):
      raise BucketError(f"{folder} cannot be written: {line}") from error
    said = _said(error)
    for words, remedy in MENDABLE.items():
      if words in said:
        raise ValueError(
          f"{folder} cannot be written: {remedy}, and run the command again;"
          " what was saved before is kept"
        ) from error
    raise


def _said(error: BaseException | None) -> str:
  """Joins the messages of an error and of all the errors that caused it."""
  said = []
  while error is not None:
    said.append(str(error))
    if isinstance(error, BaseExceptionGroup):
      said += [_said(inner) for inner in error.exceptions]
    error = error.__cause__ or error.__context__
  return " ".join(said)
