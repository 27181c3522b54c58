"""Digests of files, which find a damaged file before a library decodes it.

A library that decodes a damaged file may print long messages, or return wrong
values. The digests of arrays (fingerprint.py) detect wrong values, but do not
tell which file is damaged.

A bucket knows the MD5 of its objects, so no object is read for its digest. On a
disk, a digest is a part of the SHA-256.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from diffdistill.system.files import listing

# The size and the digest of each file, by its path in the folder.
Files = dict[str, tuple[int, str]]

# The first letters of a digest that is an MD5.
MD5 = "md5:"


class DamagedError(ValueError):
  """The error that data on the disk differs from the data that was saved.

  Its message names no remedy; the caller adds the remedy.
  """


def files_of(folder: epath.Path) -> Files:
  """Computes the size and a digest of each file, by its path in the folder."""
  return {
    name: (size, f"{MD5}{md5}" if md5 else _digest(folder / name))
    for name, (size, md5) in listing(folder).items()
  }


def check_files(
  folder: epath.Path, files: Mapping[str, Sequence[Any]], whole: bool = True
) -> None:
  """Compares the files of a folder with the result of `files_of`.

  The folder may have been copied from a disk to a bucket, or back.

  Args:
    folder: where the files are.
    files: the size and the digest of each file, by path.
    whole: whether to compare the digests too, not only the sizes.

  Raises:
    DamagedError: if a file is missing or differs; the message names the first
      such file.
  """
  found = listing(folder) if files else {}
  for name, (size, digest) in files.items():
    path = folder / name
    if name not in found:
      raise DamagedError(f"{path} is missing")
    here, md5 = found[name]
    if here != size:
      raise DamagedError(f"{path} is damaged: it has {here} of {size} bytes")
    if not whole or digest == f"{MD5}{md5}":
      continue
    if digest != _digest(path, MD5 if digest.startswith(MD5) else ""):
      raise DamagedError(f"{path} is damaged: it differs from what was saved")


def _digest(path: epath.Path, kind: str = "") -> str:
  """Reads a file for its digest: an MD5, or the first part of a SHA-256."""
  digest = (
    hashlib.md5(usedforsecurity=False) if kind == MD5 else hashlib.sha256()
  )
  with path.open("rb") as file:
    while block := file.read(2**22):
      digest.update(block)
  text = digest.hexdigest()
  return f"{MD5}{text}" if kind == MD5 else text[:16]
