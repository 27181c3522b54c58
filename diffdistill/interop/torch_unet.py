"""Converts the weights of our U-Net from torch's layers, and back.

Each family of files has its own names of layers. The layout of a layer is the
same in all families:

  layer         ours                      torch's
  convolution   (height, width, in, out)  (out, in, height, width)
  dense         (in, out)                 (out, in), or of a 1x1 convolution
  norm          scale, bias               weight, bias
  label         a dense layer of one-hots, whose bias is added to all rows of
                torch's table of embeddings
  qkv           (in, 3, heads, size)      three dense layers, or one whose
                                          outputs are in either order
"""

from collections.abc import Callable

import jax
import numpy as np

from diffdistill.arrays import Params
from diffdistill.interop.remaining import Remaining
from diffdistill.interop.tensors import Tensors
from diffdistill.interop.unet_layers import Layer, build, layers
from diffdistill.networks.unet import UNet

# A function that maps our name of a layer, such as "down_0_block_1/conv1", to
# its name in the file. It returns three names if queries, keys and values have
# their own layers.
Name = Callable[[str], str | tuple[str, str, str]]


def params_from_torch(
  module: UNet,
  image_shape: tuple[int, int, int],
  tensors: Tensors,
  name: Name,
  *,
  heads_first: bool = False,
) -> Params:
  """Builds the tree of a U-Net's weights, float32, from torch's tensors.

  Args:
    module: the U-Net.
    image_shape: (h, w, c).
    tensors: torch's state dict, in which each tensor is a weight of this U-Net.
    name: returns the name of each layer in the file.
    heads_first: whether the outputs of one layer for queries, keys and values
      are ordered as (heads, 3, size), not as (3, heads, size).

  Raises:
    ValueError: if a tensor is missing, of another shape or left over.
  """
  left = Remaining(
    tensors=dict(tensors),
    holder="the file of weights",
    network="this network",
    remedy="pass the settings that the weights were trained with",
  )

  def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return left.take(name, shape).astype(np.float32)

  def layer(path: str, shapes: Layer) -> Layer:
    theirs = name(path)
    if path.endswith("/qkv"):
      return _attention(theirs, shapes["kernel"].shape, heads_first, take)
    assert isinstance(theirs, str)
    if path.endswith("/label"):
      # A table of label embeddings has no bias, so use zeros.
      table = take(f"{theirs}.weight", shapes["kernel"].shape)
      return {"kernel": table, "bias": np.zeros_like(table[0])}
    bias = take(f"{theirs}.bias", shapes["bias"].shape)
    if "scale" in shapes:
      return {"scale": take(f"{theirs}.weight", bias.shape), "bias": bias}
    *sides, inputs, outputs = shapes["kernel"].shape
    weight = take(f"{theirs}.weight", (outputs, inputs, *sides))
    kernel = np.ascontiguousarray(np.moveaxis(weight, (1, 0), (-2, -1)))
    return {"kernel": kernel, "bias": bias}

  params = build(module, image_shape, layer)
  left.check_empty()
  return params


def _attention(
  names: str | tuple[str, str, str],
  kernel: tuple[int, ...],
  heads_first: bool,
  take: Callable[[str, tuple[int, ...]], np.ndarray],
) -> Layer:
  inputs, _, heads, size = kernel
  width = heads * size
  if isinstance(names, str):
    weight = take(f"{names}.weight", (3 * width, inputs))
    bias = take(f"{names}.bias", (3 * width,))
  else:
    weight = np.concatenate(
      [take(f"{name}.weight", (width, inputs)) for name in names]
    )
    bias = np.concatenate([take(f"{name}.bias", (width,)) for name in names])
  outputs = (heads, 3, size) if heads_first else (3, heads, size)
  weight = weight.T.reshape(inputs, *outputs)
  bias = bias.reshape(outputs)
  if heads_first:
    weight, bias = weight.swapaxes(1, 2), bias.swapaxes(0, 1)
  return {
    "kernel": np.ascontiguousarray(weight),
    "bias": np.ascontiguousarray(bias),
  }


def torch_from_params(
  params: Params, name: Name, pointwise: Callable[[str], bool]
) -> Tensors:
  """Returns a U-Net's weights as torch's tensors; inverts `params_from_torch`.

  The bias of the label layer is added to the table of embeddings.

  Args:
    params: the tree of a U-Net's weights.
    name: returns the name of each layer in the file; three names for queries,
      keys and values.
    pointwise: returns whether our dense layer at a path becomes a 1x1
      convolution.
  """
  tensors = {}
  for path, ours in layers(jax.tree.map(np.asarray, params)).items():
    theirs = name(path)
    if not isinstance(theirs, str):
      inputs = len(ours["kernel"])
      for i, part in enumerate(theirs):
        weight = ours["kernel"][:, i].reshape(inputs, -1)
        tensors[f"{part}.weight"] = weight.T
        tensors[f"{part}.bias"] = ours["bias"][i].reshape(-1)
    elif path.endswith("/label"):
      tensors[f"{theirs}.weight"] = ours["kernel"] + ours["bias"][None, :]
    elif "scale" in ours:
      tensors[f"{theirs}.weight"] = ours["scale"]
      tensors[f"{theirs}.bias"] = ours["bias"]
    else:
      weight = np.moveaxis(ours["kernel"], (-2, -1), (1, 0))
      if pointwise(path):
        weight = weight[:, :, None, None]
      tensors[f"{theirs}.weight"] = weight
      tensors[f"{theirs}.bias"] = ours["bias"]
  return {
    name: np.ascontiguousarray(tensor, np.float32)
    for name, tensor in tensors.items()
  }
