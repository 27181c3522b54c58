"""Reads and writes objects in a bucket (gs://).

A folder in a bucket is only the common beginning of names of objects. An object
appears whole when its upload ends, or not at all, so no file is written beside
its target and renamed: a bucket can only copy and delete.

gcsfs sends a request again if the bucket is busy or does not answer, for about
half a minute; so does TensorStore, which writes the arrays, for some minutes.
"""

import base64
import functools
import logging
import os
from typing import Any

from etils import epath

from diffdistill.system import bucket_faults

EMULATOR = "STORAGE_EMULATOR_HOST"
# The variables of the libraries that reach a bucket, and their values here.
# EPATH_USE_TF: another program may have installed TensorFlow, whose way to a
# bucket has other errors. GCSFS...: gcsfs then asks another service for the
# kind of the bucket, for up to a minute, before each operation on a bucket
# whose kind the account may not see.
VARIABLES = {
  "EPATH_USE_TF": "false",
  "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
}


def prepare(path: str) -> None:
  """Prepares the libraries for a bucket, before any of them reaches it.

  Args:
    path: an address in the bucket, such as gs://bucket/run.
  """
  bucket_faults.NAMES.add(path.split("/")[2])
  _prepare()


@functools.cache
def _prepare() -> None:
  for name, value in VARIABLES.items():
    os.environ.setdefault(name, value)
  import fsspec

  # Other processes write into the same bucket, so never trust an old listing.
  settings: dict[str, Any] = {"use_listings_cache": False}
  if os.environ.get(EMULATOR):
    # A server for tests, which needs no credentials.
    settings["token"] = "anon"
    os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", os.environ[EMULATOR])
  for protocol in ("gs", "gcs"):
    known = fsspec.config.conf.get(protocol, {})
    fsspec.config.conf[protocol] = settings | known
  # gcsfs writes a traceback for each error that it raises as well.
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


def write(path: epath.Path, data: bytes) -> None:
  """Writes an object, whole or not at all, in place of an old one."""
  store(path).pipe_file(str(path), data)


def create(path: epath.Path, data: bytes) -> bool:
  """Writes an object if there is none; returns whether there was none.

  Of several processes that call this at the same time, one creates the object.
  """
  try:
    store(path).pipe_file(str(path), data, mode="create")
  except FileExistsError:
    return False
  return True


def read(path: epath.Path) -> bytes:
  """Reads an object, by one request.

  Raises:
    FileNotFoundError: if there is no such object.
  """
  return store(path).cat_file(str(path))


def listing(folder: epath.Path) -> dict[str, tuple[int, str]]:
  """Lists all objects in a folder, by one request for a thousand of them.

  Returns:
    The size of each object and its MD5 in hexadecimal digits, by its path in
    the folder. The MD5 is "" if the bucket knows none.
  """
  root = str(folder).removeprefix("gs://").rstrip("/") + "/"
  found = store(folder).find(str(folder), detail=True)
  return {
    name.removeprefix(root): (
      entry["size"],
      base64.b64decode(entry.get("md5Hash", "")).hex(),
    )
    for name, entry in sorted(found.items())
  }


def remove(path: epath.Path) -> None:
  """Removes an object, or all objects in a folder, if there are any."""
  names = store(path).find(str(path))
  if names:
    store(path).rm(names)


def move(old: epath.Path, new: epath.Path) -> None:
  """Gives an object, or all objects in a folder, another name.

  All objects are copied before one is deleted, so a move that was interrupted
  can be repeated.
  """
  files = store(old)
  root = str(old).removeprefix("gs://")
  names = files.find(root)
  for name in names:
    files.cp_file(name, f"{new}{name.removeprefix(root)}")
  if names:
    files.rm(names)


def store(path: epath.PathLike) -> Any:
  """Returns the file system of fsspec that epath uses for this path too."""
  from etils.epath import backend

  return backend.fsspec_backend.fs(path)
