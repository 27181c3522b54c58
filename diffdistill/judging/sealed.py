"""Writes and reads arrays in a file that detects every flipped bit.

The file is an .npz whose archive comment is a digest of all bytes before it.
NumPy can read it too, but checks only the checksums of the members and not
their headers.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping

import numpy as np

# The number of hexadecimal digits of a SHA-256.
LENGTH = 64


def seal(arrays: Mapping[str, np.ndarray]) -> bytes:
  """The bytes of an .npz file that `unseal` reads."""
  data = io.BytesIO()
  np.savez(data, allow_pickle=False, **arrays)
  with zipfile.ZipFile(data, "a") as archive:
    archive.comment = b"0" * LENGTH
  body = data.getvalue()[:-LENGTH]
  return body + hashlib.sha256(body).hexdigest().encode()


def unseal(data: bytes) -> dict[str, np.ndarray]:
  """The arrays of a sealed file.

  Raises:
    ValueError: if a byte was changed.
  """
  body, digest = data[:-LENGTH], data[-LENGTH:]
  if hashlib.sha256(body).hexdigest().encode() != digest:
    raise ValueError("it is damaged: its digest does not match")
  archive = np.load(io.BytesIO(data), allow_pickle=False)
  return {name: archive[name] for name in archive.files}
