"""Zip archives, such as .npz, that do not grow without bound when unpacked."""

import zipfile

from etils import epath

# Photographs pack to about their own size, drawings to a twentieth; an archive
# of zeros to a thousandth, and it may name one part of the file many times.
SHARE, FREE = 200, 1 << 28


def check_unpacked_size(path: epath.Path) -> None:
  """Refuses an archive whose content is far larger than its file.

  What is no zip, or a damaged one, is left to whoever reads it.

  Args:
    path: of the file, local or in a bucket.

  Raises:
    ValueError: for such an archive.
  """
  try:
    with path.open("rb") as opened, zipfile.ZipFile(opened) as archive:
      unpacked = sum(entry.file_size for entry in archive.infolist())
  except (zipfile.BadZipFile, NotImplementedError, ValueError):
    return
  size = path.stat().length
  if unpacked > SHARE * size + FREE:
    raise ValueError(
      f"{path} of {size:,} bytes says that it unpacks to {unpacked:,}, more"
      f" than {SHARE} times as much; write it again with np.savez, which packs"
      " nothing"
    )
