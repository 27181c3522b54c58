"""Reads our U-Net's fields from the config.json of a diffusers UNet2DModel.

A field that we cannot represent is refused, and the message names it.
"""

from typing import Any

from diffdistill.interop.model import Fields
from diffdistill.interop.unet_layers import without_defaults
from diffdistill.networks.require import require
from diffdistill.networks.unet import STYLES

Config = dict[str, Any]

# UNet2DModel's defaults, for the fields that a config.json leaves out.
DEFAULTS: Config = {
  "sample_size": None,
  "in_channels": 3,
  "out_channels": 3,
  "center_input_sample": False,
  "time_embedding_type": "positional",
  "time_embedding_dim": None,
  "freq_shift": 0,
  "flip_sin_to_cos": True,
  "down_block_types": ("DownBlock2D", *("AttnDownBlock2D",) * 3),
  "mid_block_type": "UNetMidBlock2D",
  "up_block_types": (*("AttnUpBlock2D",) * 3, "UpBlock2D"),
  "block_out_channels": (224, 448, 672, 896),
  "layers_per_block": 2,
  "mid_block_scale_factor": 1,
  "downsample_padding": 1,
  "downsample_type": "conv",
  "upsample_type": "conv",
  "dropout": 0.0,
  "act_fn": "silu",
  "attention_head_dim": 8,
  "norm_num_groups": 32,
  "attn_norm_num_groups": None,
  "norm_eps": 1e-5,
  "resnet_time_scale_shift": "default",
  "add_attention": True,
  "class_embed_type": None,
  "num_class_embeds": None,
  "num_train_timesteps": None,
}
# For each field that has only a few possible values, the values that we can
# represent.
CHOICES = {
  "center_input_sample": (False,),
  "time_embedding_type": ("positional",),
  "freq_shift": (0, 1),
  "mid_block_type": ("UNetMidBlock2D",),
  "mid_block_scale_factor": (1,),
  "downsample_padding": (0, 1),
  "downsample_type": ("conv", "resnet", None),
  "upsample_type": ("conv", "resnet", None),
  "act_fn": ("silu", "swish"),
  "resnet_time_scale_shift": ("default", "scale_shift"),
  "class_embed_type": (None,),
}
STYLE = {"default": "ddpm", "scale_shift": "film"}
RESAMPLING = {"conv": "conv", "resnet": "block", None: "conv"}
PADDING = {0: "same", 1: "both"}
# Diffusers' names of levels without attention, by the way in which they change
# the resolution.
PLAIN = {
  "down": {"conv": "DownBlock2D", "block": "ResnetDownsampleBlock2D"},
  "up": {"conv": "UpBlock2D", "block": "ResnetUpsampleBlock2D"},
}
ATTENTIVE = {"down": "AttnDownBlock2D", "up": "AttnUpBlock2D"}


def read_config(config: Config) -> tuple[Fields, tuple[int, int, int], int]:
  """Returns the fields of a U-Net, (h, w, c) and the number of classes.

  The dropout of the config is ignored, because the recipe sets it.

  Raises:
    ValueError: if we cannot represent a field.
  """
  for name in config:
    require(
      name.startswith("_") or name in DEFAULTS,
      f"{name} is no field of UNet2DModel; pass the config.json of one",
    )
  config = DEFAULTS | config
  for name, known in CHOICES.items():
    _require(config, name, config[name] in known, f"one of {known}")
  widths, height, width = _sizes(config)
  style = STYLE[config["resnet_time_scale_shift"]]
  attentive, resampling = _levels(config)
  middle = _read_middle(config)
  attended = [widths[i] for i in attentive]
  attended += [] if middle == "blocks" else [widths[-1]]
  head_dim = config["attention_head_dim"]
  _require(
    config,
    "attention_head_dim",
    head_dim is None or all(width % head_dim == 0 for width in attended),
    f"a divisor of {attended}",
  )
  channels, groups = widths[0], config["norm_num_groups"]
  embed_dim = config["time_embedding_dim"]
  fields = {
    "channels": channels,
    "multipliers": tuple(width // channels for width in widths),
    "num_blocks": config["layers_per_block"],
    "attention": tuple(height // 2**i for i in attentive),
    "head_dim": head_dim,
    "embed_dim": None if embed_dim in (None, 4 * channels) else embed_dim,
    "style": style,
    "groups": groups,
    "group_size": 1 if min(widths) < 2 * groups else 2,
    "resampling": None if resampling == STYLES[style] else resampling,
    "padding": PADDING[config["downsample_padding"]],
    "middle": middle,
    "epsilon": config["norm_eps"],
    "cos_first": config["flip_sin_to_cos"],
    "frequency_shift": config["freq_shift"],
  }
  if resampling != "conv":
    del fields["padding"]
  image_shape = (height, width, config["in_channels"])
  classes = config["num_class_embeds"] or 0
  return without_defaults(fields), image_shape, classes


def _sizes(config: Config) -> tuple[tuple[int, ...], int, int]:
  """Returns the channels of each level, and the height and width of images."""
  widths = tuple(config["block_out_channels"])
  _require(
    config,
    "block_out_channels",
    all(width % widths[0] == 0 for width in widths),
    "multiples of the first",
  )
  size = config["sample_size"]
  _require(config, "sample_size", size is not None, "the side of the images")
  height, width = (size, size) if isinstance(size, int) else size
  divisor = 2 ** (len(widths) - 1)
  _require(
    config,
    "sample_size",
    height % divisor == 0 and width % divisor == 0,
    f"sizes divisible by {divisor}",
  )
  groups = config["norm_num_groups"]
  _require(
    config,
    "norm_num_groups",
    groups is not None and all(width % groups == 0 for width in widths),
    f"a divisor of {widths}",
  )
  return widths, height, width


def _levels(config: Config) -> tuple[list[int], str | None]:
  """Returns the levels with attention, and how levels change the resolution."""
  attentive, ways = {}, {}
  for way in ("down", "up"):
    field = f"{way}_block_types"
    types = [name.removeprefix("UNetRes") for name in config[field]]
    plain = {name: how for how, name in PLAIN[way].items()}
    count = len(config["block_out_channels"])
    known = (*plain, ATTENTIVE[way])
    _require(
      config,
      field,
      len(types) == count and set(types) <= set(known),
      f"{count} of {', '.join(known)}",
    )
    # Order the levels from fine to coarse. The blocks on the way up are listed
    # from coarse to fine.
    types = types if way == "down" else types[::-1]
    attentive[way] = [
      i for i, name in enumerate(types) if name == ATTENTIVE[way]
    ]
    own = RESAMPLING[config[f"{way}sample_type"]]
    # The last level does not change the resolution, so leave it out. It is the
    # coarsest level on the way down and the finest on the way up.
    moving = types[:-1] if way == "down" else types[1:]
    ways[way] = {plain.get(name, own) for name in moving}
  _require(
    config,
    "up_block_types",
    attentive["down"] == attentive["up"],
    "attention at the levels of down_block_types",
  )
  for way, other in (("down", "downsample_type"), ("up", "upsample_type")):
    _require(
      config,
      f"{way}_block_types",
      len(ways["down"] | ways[way]) <= 1,
      f"blocks that change the resolution alike, as {other} and"
      " down_block_types say",
    )
  return attentive["down"], next(iter(ways["down"]), None)


def _read_middle(config: Config) -> str:
  if not config["add_attention"]:
    return "blocks"
  groups = config["attn_norm_num_groups"]
  if groups is None and config["resnet_time_scale_shift"] == "scale_shift":
    return "bare_attention"
  _require(
    config,
    "attn_norm_num_groups",
    groups in (None, config["norm_num_groups"]),
    "None or norm_num_groups",
  )
  return "attention"


def _require(config: Config, field: str, condition: bool, remedy: str) -> None:
  require(
    condition,
    f"{field} of UNet2DModel is {config[field]!r}, which cannot be"
    f" represented; pass {remedy}",
  )
