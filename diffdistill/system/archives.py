"""Refuses zip archives, such as .npz, that would unpack to very many bytes."""

import zipfile

from etils import epath

# An archive may unpack to SHARE times its size, plus FREE bytes. Honest
# archives stay below this: compression makes drawings about 20 times smaller.
# A hostile one has zeros, which become 1000 times smaller, or names the same
# part of its file many times.
SHARE, FREE = 200, 1 << 28


def check_unpacked_size(path: epath.Path) -> None:
  """Refuses an archive whose content is far larger than its file.

  A file that is not a zip archive, or is damaged, is not refused here, because
  its reader refuses it.

  Args:
    path: the path of the file, local or in a bucket.

  Raises:
    ValueError: if the archive would unpack to too many bytes.
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
      f" than {SHARE} times as much; write it again with np.savez, without"
      " compression"
    )
