"""Reads paths as people write them: a folder, ~/folder, file:// or gs://."""

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from diffdistill.system import buckets
from diffdistill.system.extras import installing

# The sections of a config that can hold paths in text fields.
SECTIONS = ("data", "evaluation", "stages")
# The prefixes of paths in fields that say where weights come from.
_PREFIXES = ("path:", "imported:")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def place(name: str, text: str) -> epath.Path:
  """Returns the path that a flag or a field names.

  Args:
    name: the name of the flag or field, for refusals: "--out".
    text: the value of the flag or field.

  Raises:
    ValueError: if the path is empty, in a store that cannot be reached, in the
      home folder of an unknown user, or not valid UTF-8.
  """
  if not text:
    raise ValueError(f"{name} is empty; pass a path")
  return epath.Path(_place(name, text))


def places(name: str, values: Sequence[str]) -> list[epath.Path]:
  """Returns the paths of a flag that takes several: A,B or repeated flags.

  If a value with commas is an existing path, it is one path.

  Raises:
    ValueError: in the same cases as `place`, and if a path is empty.
  """
  result = []
  for value in values:
    whole = place(name, value) if value else None
    if whole is not None and ("," not in value or whole.exists()):
      result.append(whole)
      continue
    for part in value.split(","):
      if not part:
        raise ValueError(
          f"{name} is {value!r}, in which a path is empty; pass A, or A,B for"
          " two"
        )
      result.append(place(name, part))
  return result


def resolved(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config in which home folders replace every ~.

  Raises:
    ValueError: in the same cases as `place`; the message names the field.
  """
  return {
    name: _resolved(name, value) if name in SECTIONS else value
    for name, value in config.items()
  }


def _resolved(path: str, value: Any) -> Any:
  if isinstance(value, Mapping):
    return {
      name: _resolved(f"{path}.{name}", item) for name, item in value.items()
    }
  if not isinstance(value, str):
    return value
  prefix = next((p for p in _PREFIXES if value.startswith(p)), "")
  text = value.removeprefix(prefix)
  if text.startswith("~") or _SCHEME.match(text):
    return prefix + _place(path, text)
  return value


def _place(name: str, text: str) -> str:
  if any("\ud800" <= letter <= "\udfff" for letter in text):
    raise ValueError(f"{name} is {text!a}, a name that is no UTF-8; rename it")
  scheme = _SCHEME.match(text)
  if scheme and scheme[1].lower() == "file":
    text = _of_file_url(name, text)
  elif scheme:
    _check_store(name, text, scheme[1])
  if not text.startswith("~"):
    return text
  known = os.path.expanduser(text)
  if known.startswith("~"):
    raise ValueError(
      f"{name} is {text}, but no home folder of"
      f" {text.split('/')[0][1:] or 'yours'} is known; pass the whole path, or"
      f" ./{text}"
    )
  return known


def _of_file_url(name: str, text: str) -> str:
  host, slash, path = text[len("file://") :].partition("/")
  if host not in ("", "localhost") or not slash:
    raise ValueError(
      f"{name} is {text}, which names another machine; pass file:///FOLDER, or"
      " the folder alone"
    )
  return f"/{path}"


def _check_store(name: str, text: str, scheme: str) -> None:
  if scheme != "gs":
    raise ValueError(
      f"{name} is {text}, but the only store that can be reached is gs://; pass"
      " gs://BUCKET/FOLDER, or a folder (stores can be mounted on one)"
    )
  if importlib.util.find_spec("gcsfs") is None:
    raise ValueError(
      f"{name} is {text}, which takes gcsfs; {installing('gcs')}"
    )
  if not text.split("/")[2]:
    raise ValueError(
      f"{name} is {text}, which names no bucket; pass gs://BUCKET/FOLDER"
    )
  buckets.prepare(text)
