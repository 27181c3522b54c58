"""Converts diffusers' UNet2DModel to our U-Net, and back: config and tensors.

`diffusers.py` reads and writes the files, and the scheduler beside them.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffdistill.arrays import Params
from diffdistill.interop.diffusers_unet_config import (
  ATTENTIVE,
  DEFAULTS,
  PADDING,
  PLAIN,
  Config,
  read_config,
)
from diffdistill.interop.model import Fields, Model, network_of
from diffdistill.interop.tensors import Tensors
from diffdistill.interop.torch_unet import (
  params_from_torch,
  torch_from_params,
)
from diffdistill.interop.unet_layers import layers
from diffdistill.networks.embeddings import sinusoid
from diffdistill.networks.layers import num_groups
from diffdistill.networks.require import require
from diffdistill.networks.unet import STYLES, UNet

# Maps our names of the parts of a block to diffusers' names. All other parts
# have the same names in both.
PARTS = {
  "dense1": "linear_1",
  "dense2": "linear_2",
  "embed": "time_emb_proj",
  "norm1/norm": "norm1",
  "norm2/norm": "norm2",
  "norm2/film": "time_emb_proj",
  "skip": "conv_shortcut",
  "norm/norm": "group_norm",
  "norm": "",
  "qkv": ("to_q", "to_k", "to_v"),
  "out": "to_out.0",
}
# Maps the names of attention's layers before diffusers 0.15 to the names since
# then.
OLD_PARTS = {
  "query": "to_q",
  "key": "to_k",
  "value": "to_v",
  "proj_attn": "to_out.0",
}


def read(
  config: Config, tensors: Tensors
) -> tuple[Fields, Params, tuple[int, int, int], int]:
  """Returns the fields of a U-Net, its weights, (h, w, c), and the classes.

  If the network predicts twice as many channels as the image has, all are kept.
  The scheduler's config says whether the second half is a learned variance.

  Raises:
    ValueError: if we cannot represent a field, or the tensors do not fit.
  """
  fields, image_shape, num_classes = read_config(config)
  module = UNet(
    **{name: value for name, value in fields.items() if name != "kind"},
    out_channels=config.get("out_channels", DEFAULTS["out_channels"]),
    num_classes=num_classes,
  )
  renamed = {}
  for name, tensor in tensors.items():
    *block, part, kind = name.split(".")
    new = (*block, OLD_PARTS.get(part, part), kind)
    renamed[".".join(new)] = tensor
  params = params_from_torch(
    module, image_shape, renamed, _namer(len(module.multipliers))
  )
  return fields, params, image_shape, num_classes


def write(
  model: Model, noise_levels: Float[np.ndarray, " k"] | None = None
) -> tuple[Config, Tensors]:
  """Returns the config and the tensors of a UNet2DModel; inverts `read`.

  Args:
    model: a model whose network is a U-Net.
    noise_levels: the noise levels that the network reads at the timesteps 0, 1,
      ... of a scheduler; their sinusoids become a learned embedding. None for
      the index of Ho et al. 2020, times 1/1000.

  Raises:
    ValueError: if UNet2DModel does not have a field of the U-Net.
  """
  module = network_of(model).module
  if not isinstance(module, UNet):
    raise ValueError(
      f"the network is a {model.network['kind']}; pass a unet for diffusers'"
      " UNet2DModel"
    )
  _require_representable(module)
  config = _config(model, module)
  tensors = torch_from_params(
    model.params,
    _namer(len(module.multipliers)),
    lambda path: path.endswith("/skip"),
  )
  if noise_levels is not None:
    config["time_embedding_type"] = "learned"
    config["num_train_timesteps"] = len(noise_levels)
    rows = sinusoid(
      jnp.asarray(noise_levels, jnp.float32),
      module.channels,
      cos_first=module.cos_first,
      shift=module.frequency_shift,
    )
    tensors["time_proj.weight"] = np.array(rows)
  elif model.precondition.get("noise") != "index":
    raise ValueError(
      f"the network's noise level is {model.precondition}, which no positional"
      " embedding of UNet2DModel reads; pass the noise_levels of a student's"
      " steps"
    )
  return config, tensors


def _require_representable(module: UNet) -> None:
  """Refuses a U-Net with a setting that UNet2DModel does not have."""
  for name, wanted in (("patch", 1), ("sinusoid_dim", module.channels)):
    value = getattr(module, name) or wanted
    require(
      value == wanted,
      f"{name} is {value}, which UNet2DModel does not have; export a network"
      f" with {wanted}",
    )
  require(
    module.multipliers[0] == 1,
    f"multipliers is {module.multipliers}, but UNet2DModel begins with the"
    " channels of its first level; export a network whose first is 1",
  )
  require(
    module.middle != "bare_attention" or module.style == "film",
    "middle is bare_attention, which UNet2DModel has in the style film alone;"
    " export a network with attention",
  )


def _config(model: Model, module: UNet) -> Config:
  """Returns the config.json of a U-Net that reads a time index below 1000."""
  height, width, image_channels = model.image_shape
  widths = [module.channels * factor for factor in module.multipliers]
  resampling = module.resampling or STYLES[module.style]
  film, block = module.style == "film", resampling == "block"
  attentive = [height // 2**i in module.attention for i in range(len(widths))]
  types = {
    way: [ATTENTIVE[way] if a else PLAIN[way][resampling] for a in attentive]
    for way in ("down", "up")
  }
  groups = _groups(model, module)
  bare = module.middle != "attention" or not film
  return DEFAULTS | {
    "_class_name": "UNet2DModel",
    "sample_size": height if height == width else [height, width],
    "in_channels": image_channels,
    "out_channels": module.out_channels,
    "time_embedding_dim": module.embed_dim,
    "freq_shift": module.frequency_shift,
    "flip_sin_to_cos": module.cos_first,
    "down_block_types": types["down"],
    "up_block_types": types["up"][::-1],
    "block_out_channels": widths,
    "layers_per_block": module.num_blocks,
    "downsample_padding": {v: k for k, v in PADDING.items()}[module.padding],
    "downsample_type": "resnet" if block else "conv",
    "upsample_type": "resnet" if block else "conv",
    "dropout": module.dropout,
    "attention_head_dim": _head_dim(module, widths, attentive),
    "norm_num_groups": groups,
    "attn_norm_num_groups": None if bare else groups,
    "norm_eps": module.epsilon,
    "resnet_time_scale_shift": "scale_shift" if film else "default",
    "add_attention": module.middle != "blocks",
    "num_class_embeds": module.num_classes or None,
  }


def _groups(model: Model, module: UNet) -> int:
  """Returns the number of groups, which must be the same in all norms."""
  counts = {
    num_groups(module.groups, len(layer["scale"]), module.group_size)
    for layer in layers(model.params).values()
    if "scale" in layer
  }
  require(
    len(counts) == 1,
    f"groups is {module.groups}, of which these norms have {sorted(counts)},"
    f" but UNet2DModel has one number; export a network with {min(counts)}",
  )
  return counts.pop()


def _head_dim(
  module: UNet, widths: list[int], attentive: list[bool]
) -> int | None:
  """Returns the channels of an attention head; None for a single head."""
  if module.head_dim is not None or module.num_heads == 1:
    return module.head_dim
  attended = {w for w, a in zip(widths, attentive, strict=True) if a}
  attended |= set() if module.middle == "blocks" else {widths[-1]}
  require(
    len(attended) <= 1,
    f"num_heads is {module.num_heads} for attention of {sorted(attended)}"
    " channels, but UNet2DModel has one head_dim; export a network with"
    " head_dim",
  )
  return attended.pop() // module.num_heads if attended else None


def _namer(levels: int) -> Callable[[str], str | tuple[str, str, str]]:
  """Returns a function that maps our name of a layer to diffusers' name.

  A layer of queries, keys and values has three names in diffusers. `levels` is
  the number of resolutions of the U-Net.
  """

  def place(block: str) -> str:
    way, *place = block.split("_")
    if way == "embed":
      return "time_embedding"
    if way == "middle":
      kind, index = (*place, "1")[:2]
      group = "resnets" if kind == "block" else "attentions"
      return f"mid_block.{group}.{int(index) - 1}"
    if way not in ("down", "up"):
      return {"norm_out": "conv_norm_out"}.get(block, block)
    level = int(place[0])
    # On the way up, diffusers counts the levels from the coarsest one.
    order = level if way == "down" else levels - 1 - level
    prefix = f"{way}_blocks.{order}"
    if place[1] == "resample":
      return f"{prefix}.{way}samplers.0"
    return f"{prefix}.{place[1].replace('block', 'resnet')}s.{place[2]}"

  def name(path: str) -> str | tuple[str, str, str]:
    if path == "embed/label":
      return "class_embedding"
    block, _, part = path.partition("/")
    parts, prefix = PARTS.get(part, part), place(block)
    if isinstance(parts, str):
      return f"{prefix}.{parts}".strip(".")
    q, k, v = (f"{prefix}.{part}" for part in parts)
    return q, k, v

  return name
