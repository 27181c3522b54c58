"""The tensors of a file of weights, by name, as numpy arrays.

A pickle can run any program, so nothing is unpickled but by torch itself with
weights_only=True, which makes tensors and plain containers alone.
"""

import io

import numpy as np
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

Tensors = dict[str, np.ndarray]
# Where training scripts put the state dict in what they save.
WRAPPERS = ("state_dict", "net")


def read_tensors(path: epath.PathLike) -> Tensors:
  """The tensors of a .safetensors, .pt, .pth or .bin file.

  Raises:
    ValueError: for a file that is missing, damaged or more than tensors.
  """
  path = epath.Path(path)
  if path.suffix not in (".safetensors", ".pt", ".pth", ".bin"):
    raise ValueError(
      f"{path} is no file of weights that can be read; pass one that ends in"
      " .safetensors, .pt, .pth or .bin"
    )
  if not path.is_file():
    raise ValueError(f"there is no file {path}; pass one of weights")
  data = path.read_bytes()
  if path.suffix == ".safetensors":
    return _read_safetensors(path, data)
  return _read_torch(path, data)


def _read_safetensors(path: epath.Path, data: bytes) -> Tensors:
  try:
    return load_safetensors(data)
  except SafetensorError as error:
    raise ValueError(
      f"{path} is damaged or no safetensors file; fetch or convert it again"
    ) from error
  except KeyError as error:
    raise ValueError(
      f"{path} has tensors of type {error.args[0]}; save them as float32"
    ) from error


def _read_torch(path: epath.Path, data: bytes) -> Tensors:
  try:
    import torch
  except ImportError as error:
    raise ValueError(
      f"{path} is read with torch, which is not installed; convert it to"
      " .safetensors where it is, or pip install torch"
    ) from error
  try:
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
  # A damaged or hostile file ends in any of a dozen errors.
  except Exception as error:
    raise ValueError(
      f"{path} is damaged or holds more than tensors, and nothing else is"
      " unpickled; save model.state_dict(), or convert it to .safetensors"
    ) from error
  for wrapper in WRAPPERS:
    if isinstance(state, dict) and wrapper in state:
      state = state[wrapper]
  if not isinstance(state, dict) or not all(
    isinstance(tensor, torch.Tensor) for tensor in state.values()
  ):
    raise ValueError(
      f"{path} holds no state dict of tensors; save model.state_dict()"
    )
  return {
    str(name): tensor.detach().float().numpy() for name, tensor in state.items()
  }
