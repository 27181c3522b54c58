"""Reads JSON files that other programs wrote, such as configs of models."""

import json
from typing import Any

from etils import epath

MAX_SIZE = 1 << 24  # The most bytes of a file. Configs have a few thousand.


def read_foreign_json(path: epath.Path, remedy: str) -> dict[str, Any]:
  """Reads the fields of a JSON object.

  Args:
    path: the path of the file.
    remedy: a text that says what a person can do about a refusal.

  Raises:
    ValueError: if the file is too large, is not JSON, is nested too deeply, or
      is not an object; the message is one line.
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
