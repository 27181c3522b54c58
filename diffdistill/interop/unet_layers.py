"""Builds the weights of our U-Net layer by layer, for importers."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from diffdistill.arrays import Params
from diffdistill.interop.model import Fields
from diffdistill.networks.network import LinenNetwork
from diffdistill.networks.unet import UNet

# The arrays of a layer, or the shapes of these arrays. A layer has a kernel or
# a scale, and may have a bias.
Layer = Mapping[str, Any]


def build(
  module: UNet,
  image_shape: tuple[int, int, int],
  layer: Callable[[str, Layer], Layer],
) -> Params:
  """Builds the tree of a U-Net's weights.

  Args:
    module: the U-Net.
    image_shape: (h, w, c).
    layer: returns the arrays of a layer, given its path, such as
      "down_0_block_1/conv1", and their shapes.
  """
  shapes = layers(shapes_of(module, image_shape))
  filled = {path: layer(path, arrays) for path, arrays in shapes.items()}
  return unflatten_dict(filled, sep="/")


def shapes_of(module: UNet, image_shape: tuple[int, int, int]) -> Params:
  """Returns the shapes of a U-Net's weights, as a tree."""
  network = LinenNetwork(
    module=module, image_shape=image_shape, num_classes=module.num_classes
  )
  return jax.eval_shape(network.init, jax.random.key(0))


def layers(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the layers of a tree, by path; a layer is a node with arrays."""
  return flatten_dict(tree, is_leaf=lambda _, part: "bias" in part, sep="/")


def without_defaults(fields: Fields) -> Fields:
  """Returns the fields of a U-Net that differ from defaults, and its kind."""
  defaults = {f.name: f.default for f in dataclasses.fields(UNet)}
  return {"kind": "unet"} | {
    name: value for name, value in fields.items() if value != defaults[name]
  }
