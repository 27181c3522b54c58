"""Reads and writes our format: a folder of model.json and model.safetensors.

The JSON has all fields of `Model` except the weights. The name of a tensor is
the path of a parameter, such as down_0_block_0.conv1.kernel.
"""

import dataclasses
import hashlib

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from diffdistill.arrays import Params
from diffdistill.fields import plain
from diffdistill.interop.model import Model, check, network_of
from diffdistill.interop.tensors import Tensors, as_safetensors, read_tensors
from diffdistill.system.files import read_json, write_atomically, write_json

DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"
FORMAT = "diffdistill-1"


def save(model: Model, folder: epath.Path) -> None:
  """Writes both files; model.json comes last and marks a complete folder."""
  weights = as_safetensors(flat(model.params))
  write_atomically(folder / WEIGHTS, weights)
  fields = {
    field.name: getattr(model, field.name)
    for field in dataclasses.fields(model)
    if field.name != "params"
  }
  # While these files are written, a reader may find one old and one new file.
  # The digest of the weights detects this.
  fields = {"format": FORMAT, "weights": _digest(weights), **fields}
  write_json(folder / DESCRIPTION, fields)


def describe(folder: epath.Path) -> Model:
  """Reads the model of a folder, without its weights.

  Raises:
    ValueError: if the folder holds no model, or a damaged one.
  """
  return _described(folder)[0]


def load(folder: epath.Path) -> Model:
  """Reads the model of a folder, with its weights.

  Raises:
    ValueError: if the folder holds no model, or weights that are damaged or
      do not fit the network.
  """
  model, digest = _described(folder)
  path = folder / WEIGHTS
  tensors = read_tensors(path)
  if _digest(path.read_bytes()) != digest:
    raise ValueError(
      f"{path} has other weights than {DESCRIPTION} was written for; import or"
      " export the model again"
    )
  return check(dataclasses.replace(model, params=nested(tensors)))


def _described(folder: epath.Path) -> tuple[Model, str]:
  """Reads the model without its weights, and the digest of its weights."""
  path = folder / DESCRIPTION
  if not path.exists():
    raise ValueError(
      f"{folder} holds no imported model (it has no {DESCRIPTION}); make one"
      f" with `diffdistill import --from=... --out={folder}`"
    )
  try:
    fields = read_json(path)
    if fields.pop("format") != FORMAT:
      raise ValueError("it has another format")
    digest = fields.pop("weights")
    model = Model(**plain(fields), params={})
    network_of(model)
  # A person may have edited the JSON, and its errors can raise any exception.
  except Exception as error:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise ValueError(
      f"{path} cannot be read ({reason}); import the model again"
    ) from error
  return model, digest


def _digest(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()


def flat(params: Params) -> Tensors:
  """Returns the arrays of a tree, by their paths joined with dots."""
  return {
    path: np.ascontiguousarray(leaf, np.float32)
    for path, leaf in flatten_dict(params, sep=".").items()
  }


def nested(tensors: Tensors) -> Params:
  """Returns the tree of arrays that `flat` has flattened."""
  return unflatten_dict(tensors, sep=".")
