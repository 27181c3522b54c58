"""Reads a pickle, or a file of torch, without running any code of it.

  file                            begins with    then
  of torch.save                   PK             a zip: data.pkl, data/0, ...
  of torch.save before torch 1.6  LEGACY         pickles, then storages
  of pickle.dump                  anything else  one pickle

Pickles are read by `stack_machine`. Tensors become read-only numpy arrays.
"""

import io
import zipfile
from functools import partial
from typing import Any

import numpy as np
from etils import epath

from diffdistill.interop.budget import Budget, check_parts
from diffdistill.interop.pickled_names import (
  STORAGES,
  Global,
  RefusalError,
  Storage,
  require,
)
from diffdistill.interop.stack_machine import Find, no_storage, run

# The first bytes of an old torch file: a pickle of torch's magic number.
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
LEGACY_VERSION = 1001
MAX_KEY = 32  # The most digits of a storage's key, a count or an address.


def read_pickle(path: epath.Path) -> Any:
  """Reads the containers, numbers, arrays and `Object`s in a file.

  Raises:
    ValueError: if the file is damaged, names other things, or needs work or
      memory out of proportion to its size.
  """
  try:
    data = path.read_bytes()
    budget = Budget(size=len(data))
    content = _load(data, budget, partial(_load_storage, budget=budget))
    check_parts(content)
    return content
  except RefusalError as error:
    raise ValueError(f"{path} {error}") from error
  # A damaged file can raise a dozen different exceptions, so catch them all.
  except Exception as error:
    raise ValueError(
      f"{path} is damaged or no pickle; fetch or save it again"
    ) from error


def _load(data: bytes, budget: Budget, load_storage: Find) -> Any:
  """Reads a file from its bytes; `load_storage` reads a file within it."""
  if data.startswith(b"PK"):
    return _load_zip(data, budget, load_storage)
  if data.startswith(LEGACY):
    return _load_legacy(data, budget, load_storage)
  return run(io.BytesIO(data), budget, load_storage=load_storage)


def _load_storage(data: bytes, budget: Budget) -> Storage:
  """Loads a storage from the bytes of a torch file within the file."""
  storage = _load(data, budget, no_storage)
  require(
    isinstance(storage, Storage),
    "has a file within it that is no storage; save its state_dict()",
  )
  return storage


def _load_zip(data: bytes, budget: Budget, load_storage: Find) -> Any:
  # Read the archive's entries in memory; do not unpack them to a disk.
  archive = zipfile.ZipFile(io.BytesIO(data))
  entries = archive.infolist()
  names = [entry.filename for entry in entries]
  require(
    len(names) == len(set(names))
    and all(e.compress_type == zipfile.ZIP_STORED for e in entries)
    and sum(e.file_size for e in entries) <= len(data),
    "is a zip with entries that are packed or shared, which torch does not"
    " write; save it again",
  )
  roots = [n.removesuffix("data.pkl") for n in names if n.endswith("/data.pkl")]
  require(
    len(roots) == 1,
    f"is a zip with {len(roots)} entries data.pkl; pass what torch.save wrote",
  )
  (root,) = roots
  require(
    f"{root}byteorder" not in names
    or archive.read(f"{root}byteorder") == b"little",
    "is of another byte order; save it on a little-endian machine",
  )
  contents: dict[str, bytes] = {}

  def find(persistent: Any) -> Storage:
    dtype, key, count = _storage_id(persistent)
    if key not in contents:
      contents[key] = archive.read(f"{root}data/{key}")
    require(
      len(contents[key]) == count * dtype.itemsize,
      f"has {len(contents[key])} bytes in the storage {key} of {count}"
      f" {dtype}; fetch it again",
    )
    return Storage(values=np.frombuffer(contents[key], dtype))

  file = io.BytesIO(archive.read(f"{root}data.pkl"))
  return run(file, budget, find=find, load_storage=load_storage)


def _load_legacy(data: bytes, budget: Budget, load_storage: Find) -> Any:
  file = io.BytesIO(data)
  file.seek(len(LEGACY))
  version, machine = run(file, budget), run(file, budget)
  require(
    version == LEGACY_VERSION and machine["little_endian"] is True,
    f"is not of version {LEGACY_VERSION} and little-endian; save it again",
  )
  storages: dict[str, Storage] = {}
  room = len(data)

  def find(persistent: Any) -> Storage:
    nonlocal room
    dtype, key, count = _storage_id(persistent)
    require(
      persistent[5:] == (None,),
      f"has a part of the storage {key}; save it again",
    )
    if key not in storages:
      room -= count * dtype.itemsize
      require(room >= 0, f"is shorter than its storage {key}; fetch it again")
      # Reserve memory for the storage now, because the pickle contains views
      # of it. The file has the values after the pickle.
      storages[key] = Storage(values=np.zeros(count, dtype))
    values = storages[key].values
    require(
      (values.dtype, values.size) == (dtype, count),
      f"has the storage {key} in two ways; save it again",
    )
    return storages[key]

  result = run(file, budget, find=find, load_storage=load_storage)
  keys = run(file, budget)
  require(sorted(keys) == sorted(storages), "is damaged; fetch it again")
  for key in keys:
    values = storages[key].values
    count, content = file.read(8), file.read(values.nbytes)
    require(
      int.from_bytes(count, "little") == values.size
      and len(content) == values.nbytes,
      f"is damaged or shorter than its storage {key}; fetch it again",
    )
    values[:] = np.frombuffer(content, values.dtype)
  return result


def _storage_id(persistent: Any) -> tuple[np.dtype, str, int]:
  """Checks torch's id of a storage; returns its type, key and length."""
  kind, dtype, key, _, count = persistent[:5]
  require(
    kind == "storage"
    and isinstance(dtype, Global)
    and dtype.name in STORAGES
    and type(key) is str
    and len(key) <= MAX_KEY
    and key.isdigit()
    and type(count) is int
    and count >= 0,
    "has a persistent id that is no storage of torch's; save its state_dict()",
  )
  return STORAGES[dtype.name], key, count
