"""Reads Google's checkpoints of progressive distillation.

A checkpoint of Salimans & Ho 2022 is a Flax msgpack of a training's state; only
its averaged weights, ema_params, are read. It contains no code. The weights
need the config that trained them, config/*.py of the released code: its
model.args, image_size, mean_type and the ends of the schedule.
"""

from typing import cast

import numpy as np
from etils import epath
from flax import serialization
from flax.traverse_util import flatten_dict

from diffdistill.arrays import Params
from diffdistill.interop.model import Fields, Model, check
from diffdistill.interop.remaining import Remaining
from diffdistill.interop.tensors import Tensors
from diffdistill.interop.unet_layers import Layer, build, without_defaults
from diffdistill.networks.require import require
from diffdistill.networks.unet import UNet

# The fields of Google's configs, and their defaults. None marks a field that a
# config must give.
DEFAULTS: Fields = {
  "image_size": None,
  "mean_type": "x",
  "logsnr_min": -20.0,
  "logsnr_max": 20.0,
  "ch": None,
  "emb_ch": None,
  "ch_mult": None,
  "num_res_blocks": None,
  "attn_resolutions": None,
  "num_heads": None,
  "head_dim": None,
  "dropout": 0.0,
  "logsnr_input_type": "inv_cos",
  "resblock_resample": False,
}
OUTPUTS = {"x": "x0", "eps": "eps", "v": "v", "both": "both"}
# Google's network clips the logSNR that it reads to [-LIMIT, LIMIT].
LIMIT = 20.0
GROUPS = 32

# Maps our names of the parts of a block to Google's names. All other parts
# have the same names in both.
PARTS = {
  "embed/dense1": "dense0",
  "embed/dense2": "dense1",
  "embed/label": "class_emb",
  "conv_in": "conv_in",
  "norm_out/norm": "norm_out",
  "conv_out": "conv_out",
  "norm1/norm": "norm1",
  "norm2/film": "temb_proj",
  "norm2/norm": "norm2",
  "skip": "nin_shortcut",
  "norm/norm": "norm",
  "qkv": "",
  "out": "proj_out",
  # Google's layer that changes the resolution is not inside a block.
  "conv": "",
}


def read(path: epath.PathLike, settings: Fields) -> Model:
  """Reads the model of a checkpoint, such as cifar_original.

  Dropout is left at 0, since it affects only training.

  Args:
    path: the path of the checkpoint.
    settings: the fields of the config's model.args, and image_size,
      mean_type, logsnr_min and logsnr_max.

  Raises:
    ValueError: if a field is unknown, missing or cannot be represented; or if
      the file is damaged or does not fit the fields.
  """
  network, output = _network(settings)
  fields = DEFAULTS | settings
  state = _restore(epath.Path(path))
  channels = state["conv_in/kernel"].shape[-2]
  num_classes = len(state.get("class_emb/kernel", ()))
  module = UNet(
    **{name: value for name, value in network.items() if name != "kind"},
    out_channels=2 * channels if output == "both" else channels,
    num_classes=num_classes,
  )
  image_shape = (fields["image_size"], fields["image_size"], channels)
  return check(
    Model(
      network=network,
      schedule={
        "kind": "cosine",
        "logsnr_min": float(fields["logsnr_min"]),
        "logsnr_max": float(fields["logsnr_max"]),
      },
      output=output,
      precondition={"kind": "identity", "noise": "angle"},
      image_shape=image_shape,
      num_classes=num_classes,
      params=_params(module, image_shape, state),
      origin=f"google-research/diffusion_distillation, {epath.Path(path).name}",
    )
  )


def _network(settings: Fields) -> tuple[Fields, str]:
  """Returns the fields of our network, and what the network predicts."""
  for name in settings:
    require(
      name in DEFAULTS,
      f"{name} is no field of model.args; pass some of {', '.join(DEFAULTS)}",
    )
  fields = DEFAULTS | settings
  for name, value in fields.items():
    require(
      value is not None or name in ("num_heads", "head_dim"),
      f"{name} is missing; pass that of the config that trained the weights",
    )
  mean_type, noise = fields["mean_type"], fields["logsnr_input_type"]
  require(
    mean_type in OUTPUTS,
    f"mean_type is {mean_type!r}; pass one of {', '.join(OUTPUTS)}",
  )
  require(
    noise == "inv_cos",
    f"logsnr_input_type is {noise!r}, which cannot be represented; pass"
    " inv_cos, that of the released weights",
  )
  for name in ("logsnr_min", "logsnr_max"):
    require(
      abs(fields[name]) <= LIMIT,
      f"{name} is {fields[name]}, beyond which the network reads no further;"
      f" pass {-LIMIT} to {LIMIT}",
    )
  heads, head_dim = fields["num_heads"], fields["head_dim"]
  require(
    (heads is None) != (head_dim is None),
    f"num_heads is {heads} and head_dim is {head_dim}; pass one of them",
  )
  channels, embed_dim = fields["ch"], fields["emb_ch"]
  require(
    channels % GROUPS == 0,
    f"ch is {channels}, which norms of {GROUPS} groups do not divide; pass a"
    f" multiple of {GROUPS}",
  )
  size, wanted = fields["image_size"], fields["attn_resolutions"]
  heights = [size // 2**level for level in range(len(fields["ch_mult"]))]
  network = without_defaults(
    {
      "channels": channels,
      "multipliers": tuple(fields["ch_mult"]),
      "num_blocks": fields["num_res_blocks"],
      "attention": tuple(side for side in heights if side in wanted),
      "num_heads": heads or 1,
      "head_dim": head_dim,
      "embed_dim": None if embed_dim == 4 * channels else embed_dim,
      "resampling": None if fields["resblock_resample"] else "conv",
      "group_size": 1 if channels < 2 * GROUPS else 2,
    }
  )
  return network, OUTPUTS[mean_type]


def _restore(path: epath.Path) -> Tensors:
  """Reads the averaged weights by name: "down_0.block_0/conv1/kernel", ..."""
  if not path.is_file():
    raise ValueError(f"there is no file {path}; pass a checkpoint")
  try:
    state = serialization.msgpack_restore(path.read_bytes())
  # The file is not msgpack, or its msgpack contains no arrays.
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(
      f"{path} is damaged or no Flax checkpoint; fetch it again"
    ) from error
  params = state.get("ema_params") if isinstance(state, dict) else None
  flat = flatten_dict(params, sep="/") if isinstance(params, dict) else {}
  # Flax's type also allows empty branches, which the next statement refuses.
  tensors = cast(Tensors, flat)
  if np.ndim(tensors.get("conv_in/kernel", 0)) != 4:
    raise ValueError(
      f"{path} holds no ema_params of a U-Net; pass a checkpoint of"
      " google-research/diffusion_distillation"
    )
  return tensors


def _params(
  module: UNet, image_shape: tuple[int, int, int], tensors: Tensors
) -> Params:
  """Builds our tree from Google's tensors.

  Older Flax versions stored tensors in other shapes, so tensors are reshaped.
  """
  left = Remaining(
    tensors={name: np.asarray(value) for name, value in tensors.items()},
    holder="the checkpoint",
    network="this network",
    remedy="pass the config's model.args",
  )

  def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return left.take(name, shape, reshape=True).astype(np.float32)

  def layer(path: str, shapes: Layer) -> Layer:
    theirs = _their_name(path)
    if path.endswith("/qkv"):
      # Google's network has separate layers of queries, keys and values. Ours
      # stacks them on an axis before the axis of heads.
      return {
        kind: np.stack(
          [
            take(f"{theirs}/{name}/{kind}", shape.shape[:-3] + shape.shape[-2:])
            for name in "qkv"
          ],
          axis=-3,
        )
        for kind, shape in shapes.items()
      }
    return {
      kind: take(f"{theirs}/{kind}", shape.shape)
      for kind, shape in shapes.items()
    }

  params = build(module, image_shape, layer)
  left.check_empty()
  return params


def _their_name(path: str) -> str:
  """Returns Google's name of our layer.

  For our down_0_block_1/norm1/norm it is down_0.block_1/norm1. A layer "qkv"
  has the name of its block.
  """
  if path in PARTS:
    return PARTS[path]
  block, _, part = path.partition("/")
  way, *place = block.split("_")
  if way == "middle":
    block = f"mid.{place[0]}_{(*place, 1)[1]}"
  else:
    level, *place = place
    block = f"{way}_{level}.{'_'.join(place)}"
  block = block.replace("attention", "attn").replace("resample", f"{way}sample")
  return f"{block}/{PARTS.get(part, part)}".rstrip("/")
