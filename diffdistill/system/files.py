"""Files that are written whole or not at all, and JSON that proves itself."""

import contextlib
import fnmatch
import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from diffdistill.system import signals

DIGEST = "digest"


def in_bucket(path: epath.PathLike) -> bool:
  """Whether it is in an object store, where folders cannot be renamed."""
  return "://" in epath.Path(path).as_posix()


@contextlib.contextmanager
def naming(path: epath.PathLike, writer: str = "") -> Iterator[None]:
  """Lets an OSError name the file that is being written.

  A write on a full disk names no file, and what is written first has a name
  that no user has given.
  """
  try:
    yield
  except OSError as error:
    own = (None, str(_beside(path, writer)))
    if error.errno is None or error.filename not in own:
      raise
    raise OSError(error.errno, error.strerror, str(path)) from error


def _beside(path: epath.PathLike, writer: str = "") -> epath.Path:
  """Where a file is written before it takes the place of another."""
  path = epath.Path(path)
  return path.with_name(f".{path.name}.{writer}{'.' * bool(writer)}partial")


@contextlib.contextmanager
def whole_folder(folder: epath.Path) -> Iterator[epath.Path]:
  """Where to write a folder that comes into being whole or not at all.

  It is written beside its place, which it takes at the end of the `with`. What
  a killed process has left beside it is removed first. A bucket cannot rename
  folders: there it is written in its place, and removed if it fails.

  Args:
    folder: is not there, or is empty.
  """
  beside = folder if in_bucket(folder) else _beside(folder)
  remove = functools.partial(beside.rmtree, missing_ok=True)
  if beside != folder:
    remove()
  try:
    with signals.unfinished(remove):
      yield beside
      if beside != folder:
        # An empty folder may be there, which epath's rename refuses.
        os.rename(beside, folder)
  except BaseException as error:
    # A disk that lets nothing be written lets nothing be removed.
    with contextlib.suppress(OSError):
      remove()
    if isinstance(error, OSError) and isinstance(error.filename, str):
      error.filename = error.filename.replace(str(beside), str(folder))
    raise


def matching(folder: epath.PathLike, pattern: str) -> list[epath.Path]:
  """What a folder holds of a pattern, sorted; nothing if it is not there.

  Unlike `glob`, for which brackets in the folder's own name are a pattern too.
  """
  folder = epath.Path(folder)
  if not folder.is_dir():
    return []
  return sorted(
    path
    for path in folder.iterdir()
    if fnmatch.fnmatchcase(path.name, pattern)
    and (pattern.startswith(".") or not path.name.startswith("."))
  )


def write_atomically(
  path: epath.PathLike, data: str | bytes, writer: str = ""
) -> None:
  """Writes beside the target, then renames: no reader meets half a file.

  Args:
    path: of the file, local or in a bucket; its folder is made.
    data: text, or bytes.
    writer: a name of the one who writes, where two may write the same file at
      once and must not take each other's unfinished one.

  Raises:
    OSError: with the path, if it cannot be written; what was there is left.
  """
  path = epath.Path(path)
  if isinstance(data, str):
    # A name that is no text to its system holds what UTF-8 cannot.
    data = data.encode(errors="backslashreplace")
  beside = _beside(path, writer)
  remove = functools.partial(beside.unlink, missing_ok=True)
  with naming(path, writer):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with signals.unfinished(remove):
        beside.write_bytes(data)
        beside.replace(path)
    except OSError:
      # A disk that lets nothing be written lets nothing be removed.
      with contextlib.suppress(OSError):
        remove()
      raise


def write_json(
  path: epath.PathLike, fields: dict[str, Any], writer: str = ""
) -> None:
  """Writes a JSON object atomically, with a digest of its fields.

  Args:
    path: of the file, local or in a bucket; its folder is made.
    fields: plain values. NaN and infinities become null: JSON has no such
      numbers.
    writer: as of `write_atomically`.

  Raises:
    ValueError: if a field is called "digest".
  """
  if DIGEST in fields:
    raise ValueError(f"{path}: the field {DIGEST!r} is reserved; rename it")
  write_atomically(path, json_of(fields) + "\n", writer)


def json_of(fields: dict[str, Any]) -> str:
  """The text of what `read_json` reads: an object that ends with its digest."""
  fields = finite(fields)
  return json.dumps({**fields, DIGEST: digest_of(fields)}, indent=2)


def read_json(path: epath.PathLike) -> dict[str, Any]:
  """The fields that `write_json` wrote.

  Raises:
    ValueError: in one line without a remedy, if the file is not JSON, not an
      object, or differs from what was written.
    OSError: if it cannot be read.
  """
  try:
    fields = json.loads(epath.Path(path).read_bytes())
    if not isinstance(fields, dict):
      raise ValueError(f"{path} is damaged: it is not a JSON object")
    whole = fields.pop(DIGEST, None) == digest_of(fields)
  except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
    raise ValueError(f"{path} is damaged: it is not JSON") from error
  if not whole:
    raise ValueError(f"{path} is damaged: its digest does not match")
  return fields


def digest_of(fields: Any) -> str:
  """16 hexadecimal digits of plain values, whatever the order of keys."""
  text = json.dumps(fields, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def finite(value: Any) -> Any:
  """Plain values in which NaN and infinities are None, as JSON needs them."""
  if isinstance(value, dict):
    return {name: finite(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return [finite(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
