"""Files that are written whole or not at all, and where they are."""

from etils import epath


def in_bucket(path: epath.PathLike) -> bool:
  """Whether it is in an object store, where folders cannot be renamed."""
  return "://" in epath.Path(path).as_posix()


def write_atomically(path: epath.PathLike, data: str | bytes) -> None:
  """Writes beside the target, then renames: no reader meets half a file.

  Args:
    path: of the file, local or in a bucket; its folder is made.
    data: text, or bytes.
  """
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  beside = path.with_name(f".{path.name}.partial")
  try:
    if isinstance(data, str):
      beside.write_text(data)
    else:
      beside.write_bytes(data)
    beside.replace(path)
  except OSError:
    beside.unlink(missing_ok=True)
    raise
