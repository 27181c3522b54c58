"""Writes and reads shards, which are files of arrays; refuses damaged ones.

A shard is an uncompressed .npz, which is a zip archive. It has a checksum for
every array and ends with its table of contents. So a file that was cut short is
recognised without reading its arrays.
"""

import errno
import io
import zipfile
from collections.abc import Mapping

import numpy as np
from etils import epath

from diffdistill.system.files import matching, write_atomically

Arrays = dict[str, np.ndarray]


def write_shard(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes one file with all arrays, or no file.

  Raises:
    ValueError: if the disk is full.
  """
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    for name, array in arrays.items():
      # Write the archive here, because np.savez cannot write an array called
      # "file": it has an argument of this name.
      with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)
  try:
    write_atomically(path, buffer.getvalue())
  except OSError as error:
    remove_partial(path.parent)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
      raise
    raise ValueError(
      f"the disk is full: {path} needs {readable(buffer.tell())}; free as much"
      " and run the command again, which keeps the finished shards"
    ) from error


def read_shard(path: epath.Path, like: Mapping[str, np.ndarray]) -> Arrays:
  """Reads all arrays of a shard and checks their checksums.

  Args:
    path: the path of the file.
    like: arrays with the names, types and shapes that the file must have.

  Raises:
    ValueError: if the file is damaged.
  """
  with path.open("rb") as file:
    try:
      with np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    # zipfile raises RuntimeError for an unknown flag or method, and a file
    # raises OSError for a negative position.
    except (
      EOFError,
      KeyError,
      OSError,
      RuntimeError,
      ValueError,
      zipfile.BadZipFile,
    ) as error:
      raise _damaged(path) from error
  if _kinds(arrays) != _kinds(like):
    raise _damaged(path)
  return arrays


def check_end(path: epath.Path) -> None:
  """Refuses a shard that was cut short, without reading its arrays.

  Raises:
    ValueError: if it was cut short.
  """
  try:
    with path.open("rb") as file, zipfile.ZipFile(file):
      pass
  except zipfile.BadZipFile as error:
    raise _damaged(path) from error


def remove_partial(directory: epath.Path) -> None:
  """Removes unfinished files of writes that were killed or refused."""
  for path in matching(directory, ".*.npz.partial"):
    path.unlink()


def readable(num_bytes: int) -> str:
  """Writes a number of bytes in GB, MB, kB or bytes."""
  for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
    if num_bytes >= scale:
      return f"{num_bytes / scale:.1f} {unit}"
  return f"{num_bytes} bytes"


def _kinds(arrays: Mapping[str, np.ndarray]) -> dict[str, object]:
  return {name: (array.dtype, array.shape) for name, array in arrays.items()}


def _damaged(path: epath.Path) -> ValueError:
  return ValueError(
    f"{path} is cut short or damaged; remove it and it is made again"
  )
