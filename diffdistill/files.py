"""Files that are written whole or not at all, and JSON that proves itself."""

import functools
import hashlib
import json
import math
from typing import Any

from etils import epath

from diffdistill import signals

DIGEST = "digest"


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
  remove = functools.partial(beside.unlink, missing_ok=True)
  try:
    with signals.unfinished(remove):
      if isinstance(data, str):
        beside.write_text(data)
      else:
        beside.write_bytes(data)
      beside.replace(path)
  except OSError:
    remove()
    raise


def write_json(path: epath.PathLike, fields: dict[str, Any]) -> None:
  """Writes a JSON object atomically, with a digest of its fields.

  Args:
    path: of the file, local or in a bucket; its folder is made.
    fields: plain values. NaN and infinities become null: JSON has no such
      numbers.

  Raises:
    ValueError: if a field is called "digest".
  """
  if DIGEST in fields:
    raise ValueError(f"{path}: the field {DIGEST!r} is reserved; rename it")
  fields = finite(fields)
  text = json.dumps({**fields, DIGEST: digest_of(fields)}, indent=2)
  write_atomically(path, text + "\n")


def read_json(path: epath.PathLike) -> dict[str, Any]:
  """The fields that `write_json` wrote.

  Raises:
    ValueError: in one line without a remedy, if the file is not JSON, not an
      object, or differs from what was written.
    OSError: if it cannot be read.
  """
  try:
    fields = json.loads(epath.Path(path).read_bytes())
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is damaged: it is not JSON") from error
  if not isinstance(fields, dict):
    raise ValueError(f"{path} is damaged: it is not a JSON object")
  if fields.pop(DIGEST, None) != digest_of(fields):
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
