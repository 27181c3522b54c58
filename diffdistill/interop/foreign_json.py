"""JSON files that others wrote: settings and the configs of models."""

import json
from typing import Any

from etils import epath

MAX_SIZE = 1 << 24  # bytes; configs have a few thousand


def read_foreign_json(path: epath.Path, remedy: str) -> dict[str, Any]:
  """The fields of a JSON object.

  Args:
    path: the path of the file.
    remedy: what the reader of a refusal can do.

  Raises:
    ValueError: in one line, for a file that is too large, is no JSON, has
      values that are too deep, or is no object.
  """
  size = path.stat().length
  if size > MAX_SIZE:
    raise ValueError(
      f"{path} has {size:,} bytes, and settings have at most {MAX_SIZE:,};"
      f" {remedy}"
    )
  try:
    fields = json.loads(path.read_bytes())
  except RecursionError as error:
    raise ValueError(
      f"{path} is no JSON that can be read: its values are too deep; {remedy}"
    ) from error
  except ValueError as error:
    reason = " ".join(str(error).split())[:200]
    raise ValueError(f"{path} is no JSON ({reason}); {remedy}") from error
  if not isinstance(fields, dict):
    raise ValueError(f"{path} holds no fields; {remedy}")
  return fields
