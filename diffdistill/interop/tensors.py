"""Reads the tensors of a file of weights, by name, as numpy arrays.

Python's unpickler can run any program, so it is not used: `pickles` reads files
of torch, and makes only arrays and plain containers.
"""

import types

import numpy as np
from etils import epath

from diffdistill.interop.pickles import read_pickle

Tensors = dict[str, np.ndarray]
# Training scripts save the state dict under one of these names.
WRAPPERS = ("state_dict", "net")
# The most values of all tensors together, as a multiple of the values in the
# file. Tied tensors share values, so the tensors may have more values than the
# file.
MAX_SHARED = 8


def read_tensors(path: epath.PathLike) -> Tensors:
  """Reads the tensors of a .safetensors, .pt, .pth or .bin file.

  Raises:
    ValueError: if the file is missing, is damaged, or contains other things.
  """
  path = epath.Path(path)
  if path.suffix not in (".safetensors", ".pt", ".pth", ".bin"):
    raise ValueError(
      f"{path} is no file of weights that can be read; pass one that ends in"
      " .safetensors, .pt, .pth or .bin"
    )
  if not path.is_file():
    raise ValueError(f"there is no file {path}; pass one of weights")
  if path.suffix == ".safetensors":
    return _read_safetensors(path)
  return _read_torch(path)


def as_safetensors(
  tensors: Tensors, metadata: dict[str, str] | None = None
) -> bytes:
  """Returns the bytes of a .safetensors file of these tensors.

  Raises:
    ValueError: if the library safetensors is not installed.
  """
  return _library().numpy.save(tensors, metadata=metadata)


def _library() -> types.ModuleType:
  # Import safetensors here, because a machine that only trains may lack it.
  try:
    import safetensors
    import safetensors.numpy
  except ImportError as error:
    raise ValueError(
      "safetensors files take a library of that name, which is not installed;"
      " run `pip install safetensors`"
    ) from error
  return safetensors


def _read_safetensors(path: epath.Path) -> Tensors:
  safetensors = _library()
  try:
    return safetensors.numpy.load(path.read_bytes())
  except safetensors.SafetensorError as error:
    raise ValueError(
      f"{path} is damaged or no safetensors file; fetch or convert it again"
    ) from error
  except KeyError as error:
    raise ValueError(
      f"{path} has tensors of type {error.args[0]}; save them as float32"
    ) from error


def _read_torch(path: epath.Path) -> Tensors:
  state = read_pickle(path)
  for wrapper in WRAPPERS:
    if isinstance(state, dict) and wrapper in state:
      state = state[wrapper]
  if not isinstance(state, dict) or not all(
    isinstance(tensor, np.ndarray) for tensor in state.values()
  ):
    raise ValueError(
      f"{path} holds no state dict of tensors; save model.state_dict()"
    )
  # Tied weights are views of one storage. The caller may copy each view, so a
  # file with many views could fill the memory.
  size, count = path.stat().length, sum(t.size for t in state.values())
  if count > MAX_SHARED * size:
    raise ValueError(
      f"{path} of {size} bytes has tensors of {count} values; save each once"
    )
  return {
    str(name): np.asarray(tensor, np.float32) for name, tensor in state.items()
  }
