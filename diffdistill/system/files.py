"""Writes files whole or not at all, and JSON files with a digest."""

import contextlib
import fnmatch
import functools
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from diffdistill.system import buckets, signals

DIGEST = "digest"


def in_bucket(path: epath.PathLike) -> bool:
  """Returns whether a path is in an object store, which renames no folders."""
  return "://" in epath.Path(path).as_posix()


def whole(path: epath.PathLike) -> str:
  """The path from the root of the disk, for a message; a bucket as it is."""
  return str(path) if in_bucket(path) else os.path.abspath(path)


@contextlib.contextmanager
def naming(path: epath.PathLike, writer: str = "") -> Iterator[None]:
  """Makes an OSError inside the `with` name the file that is being written.

  Without this, the error of a write to a full disk names no file, or an
  unfinished file that the user does not know.
  """
  try:
    yield
  except OSError as error:
    own = (None, str(_beside(path, writer)))
    if error.errno is None or error.filename not in own:
      raise
    raise OSError(error.errno, error.strerror, str(path)) from error


def _beside(path: epath.PathLike, writer: str = "") -> epath.Path:
  """Returns the path of a file until it is whole and renamed."""
  path = epath.Path(path)
  return path.with_name(f".{path.name}.{writer}{'.' * bool(writer)}partial")


@contextlib.contextmanager
def whole_folder(folder: epath.Path) -> Iterator[epath.Path]:
  """Gives a path at which to write a folder that appears whole or not at all.

  The folder is written beside its own path and renamed at the end of the
  `with`. Unfinished folders of killed processes are removed first. A bucket
  cannot rename folders: there the folder is written at its own path, and
  removed if writing fails.

  Args:
    folder: the path of the folder, which does not exist or is empty. It may be
      a link to an empty folder.
  """
  if not in_bucket(folder):
    folder = epath.Path(os.path.realpath(folder))
  beside = folder if in_bucket(folder) else _beside(folder)
  remove = functools.partial(beside.rmtree, missing_ok=True)
  if beside != folder:
    remove()
  try:
    with signals.unfinished(remove):
      yield beside
      if beside != folder:
        # Use os.rename, because epath refuses a target that is an empty
        # folder.
        os.rename(beside, folder)
  except BaseException as error:
    # A disk on which writing fails may also fail to remove files, so ignore
    # that.
    with contextlib.suppress(OSError):
      remove()
    if isinstance(error, OSError) and isinstance(error.filename, str):
      error.filename = error.filename.replace(str(beside), str(folder))
    raise


def matching(folder: epath.PathLike, pattern: str) -> list[epath.Path]:
  """Returns the sorted paths in a folder that match a pattern.

  If there is no folder, there are no paths. Unlike `glob`, it does not treat
  brackets in the folder's name as a pattern.
  """
  folder = epath.Path(folder)
  return sorted(
    path
    for path in _entries(folder)
    if fnmatch.fnmatchcase(path.name, pattern)
    and (pattern.startswith(".") or not path.name.startswith("."))
  )


def move(old: epath.Path, new: epath.Path) -> None:
  """Gives a file or a folder another name, if it is there.

  A folder that becomes empty is removed.
  """
  if in_bucket(old):
    buckets.move(old, new)
  elif old.exists():
    new.parent.mkdir(parents=True, exist_ok=True)
    os.rename(old, new)
    with contextlib.suppress(OSError):
      os.rmdir(old.parent)


def _entries(folder: epath.Path) -> Iterable[epath.Path]:
  """Lists a folder, which need not exist; in a bucket, by one request."""
  if not in_bucket(folder):
    return folder.iterdir() if folder.is_dir() else ()
  try:
    return list(folder.iterdir())
  except FileNotFoundError:
    return ()


def write_atomically(
  path: epath.PathLike, data: str | bytes, writer: str = ""
) -> None:
  """Writes a file beside its target, then renames it, so no reader sees half.

  In a bucket, an upload appears whole or not at all, so nothing is renamed.

  Args:
    path: the path of the file, local or in a bucket; its folder is made if
      needed.
    data: text, or bytes.
    writer: a name of the writer, if two may write the same file at once; each
      uses its own unfinished file.

  Raises:
    OSError: if the file cannot be written; the error has the path, and an old
      file is left as it is.
  """
  path = epath.Path(path)
  if isinstance(data, str):
    # UTF-8 cannot encode some characters of file names that are not valid
    # text, so escape them.
    data = data.encode(errors="backslashreplace")
  if in_bucket(path):
    buckets.write(path, data)
    return
  beside = _beside(path, writer)
  remove = functools.partial(beside.unlink, missing_ok=True)
  with naming(path, writer):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with signals.unfinished(remove):
        beside.write_bytes(data)
        beside.replace(path)
    except OSError:
      # A disk on which writing fails may also fail to remove files, so ignore
      # that.
      with contextlib.suppress(OSError):
        remove()
      raise


def read_bytes(path: epath.PathLike) -> bytes:
  """Reads a whole file, in a bucket by one request.

  Raises:
    OSError: if the file cannot be read.
  """
  path = epath.Path(path)
  return buckets.read(path) if in_bucket(path) else path.read_bytes()


def listing(folder: epath.Path) -> dict[str, tuple[int, str]]:
  """Lists all files in a folder, by their path there, in order.

  Returns:
    The size of each file, and its MD5 if a bucket says it, or else "". If there
    is no folder, there are no files.
  """
  if in_bucket(folder):
    return buckets.listing(folder)
  found = {
    path.relative_to(folder).as_posix(): (path.stat().st_size, "")
    for path in pathlib.Path(folder).rglob("*")
    if not path.is_dir()
  }
  return dict(sorted(found.items()))


def write_json(
  path: epath.PathLike, fields: dict[str, Any], writer: str = ""
) -> None:
  """Writes a JSON object atomically, with a digest of its fields.

  Args:
    path: the path of the file, local or in a bucket; its folder is made if
      needed.
    fields: plain values. NaN and infinities become null, because JSON has no
      such numbers.
    writer: a name of the writer, if two may write at once; see
      `write_atomically`.

  Raises:
    ValueError: if a field is called "digest".
  """
  if DIGEST in fields:
    raise ValueError(f"{path}: the field {DIGEST!r} is reserved; rename it")
  write_atomically(path, json_of(fields) + "\n", writer)


def json_of(fields: dict[str, Any]) -> str:
  """Returns the JSON text of fields with their digest, for `read_json`."""
  fields = finite(fields)
  return json.dumps({**fields, DIGEST: digest_of(fields)}, indent=2)


def read_json(path: epath.PathLike) -> dict[str, Any]:
  """Reads the fields that `write_json` wrote, and checks their digest.

  Raises:
    ValueError: if the file is not JSON, not an object, or does not match its
      digest; one line without a remedy.
    OSError: if the file cannot be read.
  """
  try:
    fields = json.loads(read_bytes(path))
    if not isinstance(fields, dict):
      raise ValueError(f"{path} is damaged: it is not a JSON object")
    whole = fields.pop(DIGEST, None) == digest_of(fields)
  except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
    raise ValueError(f"{path} is damaged: it is not JSON") from error
  if not whole:
    raise ValueError(f"{path} is damaged: its digest does not match")
  return fields


def digest_of(fields: Any) -> str:
  """Returns a digest of plain values that does not depend on the order of keys.

  The digest has 16 hexadecimal digits.
  """
  text = json.dumps(fields, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def finite(value: Any) -> Any:
  """Replaces NaN and infinities by None, because JSON has no such numbers."""
  if isinstance(value, dict):
    return {name: finite(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return [finite(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
