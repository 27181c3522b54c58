"""The layers of our U-Net, whose weights come from elsewhere."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffdistill.arrays import Params
from diffdistill.interop.model import Fields
from diffdistill.networks.unet import UNet

# The arrays of a layer, or their shapes: kernel or scale, and bias.
Layer = Mapping[str, Any]


def build(
  module: UNet,
  image_shape: tuple[int, int, int],
  layer: Callable[[str, Layer], Layer],
) -> Params:
  """The tree of a U-Net's weights.

  Args:
    module: the U-Net.
    image_shape: (h, w, c).
    layer: its arrays, given its path such as "down_0_block_1/conv1" and the
      shapes that they have.
  """
  params: Params = {}
  for path, shapes in layers(shapes_of(module, image_shape)).items():
    *parents, last = path.split("/")
    tree = params
    for parent in parents:
      tree = tree.setdefault(parent, {})
    tree[last] = layer(path, shapes)
  return params


def shapes_of(module: UNet, image_shape: tuple[int, int, int]) -> Params:
  """The tree of its weights' shapes."""
  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  time = jax.ShapeDtypeStruct((1,), jnp.float32)
  label = jax.ShapeDtypeStruct((1,), jnp.int32) if module.num_classes else None

  def init(x, t, label):
    return module.init(jax.random.key(0), x, t, label, False)["params"]

  return jax.eval_shape(init, image, time, label)


def layers(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
  """The layers of a tree by path: what has arrays of its own."""
  if "bias" in tree:
    return {path: tree}
  found = {}
  for name, child in tree.items():
    found |= layers(child, f"{path}/{name}".strip("/"))
  return found


def without_defaults(fields: Fields) -> Fields:
  """The fields of a U-Net that say something, and its kind."""
  defaults = {f.name: f.default for f in dataclasses.fields(UNet)}
  return {"kind": "unet"} | {
    name: value for name, value in fields.items() if value != defaults[name]
  }
