"""What is wrong with the files of a folder, found out before they are decoded.

A library that decodes a damaged file may print much of its own, or take it for
another file. The digests of arrays (fingerprint.py) say whether what was
decoded is what was saved; these say which file is not.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

# Size and digest of files by their paths in a folder.
Files = dict[str, tuple[int, str]]


class DamagedError(ValueError):
  """What is on disk is not what was saved; the words are without a remedy."""


def files_of(folder: epath.Path, under: str = "") -> Files:
  """The size and a digest of each file of a folder, by its path in there."""
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
  """Compares the files of a folder with what `files_of` said of them.

  Orbax reads a damaged file too, and then prints much of its own.

  Args:
    folder: where they are.
    files: size and digest by path.
    whole: whether to read them, beyond their sizes.

  Raises:
    DamagedError: names the first that is missing or differs.
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
