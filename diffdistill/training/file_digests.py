"""Digests of files, which find a damaged file before a library decodes it.

A library that decodes a damaged file may print long messages, or return wrong
values. The digests of arrays (fingerprint.py) detect wrong values, but do not
tell which file is damaged.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

# The size and the digest of each file, by its path in the folder.
Files = dict[str, tuple[int, str]]


class DamagedError(ValueError):
  """The error that data on the disk differs from the data that was saved.

  Its message names no remedy; the caller adds the remedy.
  """


def files_of(folder: epath.Path, under: str = "") -> Files:
  """Computes the size and a digest of each file, by its path in the folder."""
  files: Files = {}
  for path in sorted(folder.iterdir()) if folder.exists() else ():
    name = f"{under}{path.name}"
    if path.is_dir():
      files |= files_of(path, f"{name}/")
    else:
      files[name] = (path.stat().length, _digest(path))
  return files


def check_files(
  folder: epath.Path, files: Mapping[str, Sequence[Any]], whole: bool = True
) -> None:
  """Compares the files of a folder with the result of `files_of`.

  Args:
    folder: where the files are.
    files: the size and the digest of each file, by path.
    whole: whether to compare the digests too, not only the sizes.

  Raises:
    DamagedError: if a file is missing or differs; the message names the first
      such file.
  """
  for name, (size, digest) in files.items():
    path = folder / name
    if not path.exists():
      raise DamagedError(f"{path} is missing")
    here = path.stat().length
    if here != size:
      raise DamagedError(f"{path} is damaged: it has {here} of {size} bytes")
    if whole and _digest(path) != digest:
      raise DamagedError(f"{path} is damaged: it differs from what was saved")


def _digest(path: epath.Path) -> str:
  digest = hashlib.sha256()
  with path.open("rb") as file:
    while block := file.read(2**22):
      digest.update(block)
  return digest.hexdigest()[:16]
