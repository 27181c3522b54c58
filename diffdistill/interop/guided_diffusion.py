"""Reads OpenAI's ADM from the file of a guided-diffusion state dict.

The file contains only weights. The README of guided-diffusion gives the flags
of each model for the sampling script, which define the network; `DEFAULTS` has
the defaults of these flags.
"""

from collections.abc import Callable

from etils import epath

from diffdistill.interop.model import Fields, Model, check
from diffdistill.interop.tensors import Tensors, read_tensors
from diffdistill.interop.torch_unet import params_from_torch
from diffdistill.interop.unet_layers import without_defaults
from diffdistill.networks.require import require
from diffdistill.networks.unet import STYLES, UNet

DEFAULTS: Fields = {
  "image_size": 64,
  "num_channels": 128,
  "num_res_blocks": 2,
  "num_heads": 4,
  "num_heads_upsample": -1,
  "num_head_channels": -1,
  "attention_resolutions": "16,8",
  "channel_mult": "",
  "class_cond": False,
  "use_scale_shift_norm": True,
  "resblock_updown": False,
  "use_new_attention_order": False,
  "learn_sigma": False,
  "diffusion_steps": 1000,
  "noise_schedule": "linear",
  "predict_xstart": False,
  "rescale_timesteps": False,
}
# Flags that are ignored, because the meaning of weights does not need them.
IGNORED = (
  "batch_size",
  "clip_denoised",
  "dropout",
  "model_path",
  "num_samples",
  "rescale_learned_sigmas",
  "timestep_respacing",
  "use_checkpoint",
  "use_ddim",
  "use_fp16",
  "use_kl",
)
# The widths of the levels, as multiples of the first, for each image size.
# They are used if channel_mult is empty.
MULTIPLIERS = {
  512: "0.5,1,1,2,2,4,4",
  256: "1,1,2,2,4,4",
  128: "1,1,2,3,4",
  64: "1,2,3,4",
}
GROUPS, EPSILON = 32, 1e-5
# The network's time indices and the betas are those of a schedule of this many
# steps.
STEPS = 1000

PARTS = {
  "embed/dense1": "time_embed.0",
  "embed/dense2": "time_embed.2",
  "embed/label": "label_emb",
  "conv_in": "input_blocks.0.0",
  "norm_out/norm": "out.0",
  "conv_out": "out.2",
  "norm1/norm": "in_layers.0",
  "conv1": "in_layers.2",
  "embed": "emb_layers.1",
  "norm2/film": "emb_layers.1",
  "norm2/norm": "out_layers.0",
  "conv2": "out_layers.3",
  "skip": "skip_connection",
  "norm/norm": "norm",
  "qkv": "qkv",
  "out": "proj_out",
}


def read(path: epath.PathLike, settings: Fields) -> Model:
  """Reads the model of a state dict, such as 64x64_diffusion.pt.

  Dropout is left at 0, since it affects only training. If the network also
  predicts a variance (learn_sigma), the weights for it are left out, because
  nothing here reads it.

  Args:
    path: the file of weights, see `read_tensors`.
    settings: the flags of guided-diffusion that differ from its defaults.

  Raises:
    ValueError: if a flag is unknown or cannot be represented, or if the weights
      do not fit.
  """
  flags = _flags(settings)
  tensors = dict(read_tensors(path))
  network = _network(flags)
  channels = _image_channels(tensors, path, flags["learn_sigma"])
  num_classes = 0
  if flags["class_cond"]:
    require(
      "label_emb.weight" in tensors,
      "class_cond is True, but the weights have no label_emb.weight; pass"
      " class_cond=False",
    )
    num_classes = len(tensors["label_emb.weight"])
  fields = {name: value for name, value in network.items() if name != "kind"}
  module = UNet(**fields, out_channels=channels, num_classes=num_classes)
  image_shape = (flags["image_size"], flags["image_size"], channels)
  params = params_from_torch(
    module,
    image_shape,
    tensors,
    _namer(module, flags["image_size"]),
    heads_first=not flags["use_new_attention_order"],
  )
  return check(
    Model(
      network=network,
      schedule=_schedule(flags),
      output="x0" if flags["predict_xstart"] else "eps",
      precondition={
        "kind": "identity",
        "noise": "index",
        "num_steps": flags["diffusion_steps"],
      },
      image_shape=image_shape,
      num_classes=num_classes,
      params=params,
      origin=f"OpenAI's guided-diffusion, {epath.Path(path).name}",
    )
  )


def _flags(settings: Fields) -> Fields:
  """Returns the flags that the weights depend on, with checked types."""
  for name in settings:
    require(
      name in DEFAULTS or name in IGNORED,
      f"{name} is no flag of guided-diffusion; pass some of"
      f" {', '.join(DEFAULTS)}",
    )
  flags = DEFAULTS | {k: v for k, v in settings.items() if k in DEFAULTS}
  for name, value in flags.items():
    kind = type(DEFAULTS[name])
    require(type(value) is kind, f"{name} is {value!r}; pass a {kind.__name__}")
  return flags


def _network(flags: Fields) -> Fields:
  size, base = flags["image_size"], flags["num_channels"]
  factors = flags["channel_mult"] or MULTIPLIERS.get(size, "")
  require(
    factors != "",
    f"channel_mult is empty, which image_size {size} does not settle; pass it",
  )
  widths = [int(float(factor) * base) for factor in factors.split(",")]
  channels = widths[0]
  require(
    all(width > 0 and width % GROUPS == 0 for width in widths),
    f"num_channels is {base}, which with channel_mult {factors} makes levels of"
    f" {widths}; pass multiples of {GROUPS}",
  )
  require(
    all(width % channels == 0 for width in widths),
    f"channel_mult is {factors}, whose levels of {widths} channels are no"
    " multiples of the first; such a network cannot be represented",
  )
  heads, upsample = flags["num_heads"], flags["num_heads_upsample"]
  head_dim = flags["num_head_channels"]
  require(
    head_dim != -1 or upsample in (-1, heads),
    f"num_heads_upsample is {upsample}, which cannot be represented; pass"
    f" num_heads, {heads}",
  )
  heights = [size // 2**level for level in range(len(widths))]
  wanted = [int(side) for side in flags["attention_resolutions"].split(",")]
  style = "film" if flags["use_scale_shift_norm"] else "ddpm"
  resampling = "block" if flags["resblock_updown"] else "conv"
  return without_defaults(
    {
      "channels": channels,
      "multipliers": tuple(width // channels for width in widths),
      "num_blocks": flags["num_res_blocks"],
      # Leave out heights that occur at no level, because OpenAI's code ignores
      # them.
      "attention": tuple(side for side in heights if side in wanted),
      "num_heads": heads if head_dim == -1 else 1,
      "head_dim": None if head_dim == -1 else head_dim,
      "sinusoid_dim": None if base == channels else base,
      "embed_dim": None if base == channels else 4 * base,
      "style": style,
      "resampling": None if resampling == STYLES[style] else resampling,
      "padding": "same" if resampling == "block" else "both",
      "groups": GROUPS,
      "group_size": 1 if min(widths) < 2 * GROUPS else 2,
      "epsilon": EPSILON,
      "cos_first": True,
      "frequency_shift": 0,
    }
  )


def _schedule(flags: Fields) -> Fields:
  steps, name = flags["diffusion_steps"], flags["noise_schedule"]
  require(
    steps == STEPS or flags["rescale_timesteps"],
    f"rescale_timesteps is False, but diffusion_steps is {steps}, so that the"
    f" network reads other indices than of {STEPS} steps, which cannot be"
    " represented; pass the flags that it was trained with",
  )
  if name == "cosine":
    return {"kind": "cosine_beta", "num_steps": steps}
  require(
    name == "linear",
    f"noise_schedule is {name!r}; pass one of linear, cosine",
  )
  # Scale the betas, so that the total noise is the same for every number of
  # steps.
  scale = STEPS / steps
  return {
    "kind": "linear_beta",
    "num_steps": steps,
    "beta_min": 1e-4 * scale,
    "beta_max": 0.02 * scale,
  }


def _image_channels(
  tensors: Tensors, path: epath.PathLike, learn_sigma: bool
) -> int:
  """Returns the channels of images; cuts the variance out of the last layer."""
  for name in ("input_blocks.0.0.weight", "out.2.weight", "out.2.bias"):
    require(
      name in tensors and tensors[name].ndim in (1, 4),
      f"{path} has no tensor {name}; pass a state dict of guided-diffusion's"
      " UNetModel",
    )
  channels = tensors["input_blocks.0.0.weight"].shape[1]
  outputs = len(tensors["out.2.weight"])
  require(
    outputs == channels * (2 if learn_sigma else 1),
    f"learn_sigma is {learn_sigma}, but the weights make {outputs} channels of"
    f" {channels}; pass learn_sigma={outputs == 2 * channels}",
  )
  for name in ("out.2.weight", "out.2.bias"):
    tensors[name] = tensors[name][:channels]
  return channels


def _namer(module: UNet, size: int) -> Callable[[str], str]:
  """Returns a function from our names of layers to OpenAI's numbered names."""
  last = len(module.multipliers) - 1
  places = {
    "middle_block_1": "middle_block.0",
    "middle_attention": "middle_block.1",
    "middle_block_2": "middle_block.2",
  }
  count = 1  # OpenAI's block 0 on the way down is the first convolution.
  for level in range(last + 1):
    for index in range(module.num_blocks):
      places[f"down_{level}_block_{index}"] = f"input_blocks.{count}.0"
      places[f"down_{level}_attention_{index}"] = f"input_blocks.{count}.1"
      count += 1
    if level != last:
      places[f"down_{level}_resample"] = f"input_blocks.{count}.0"
      count += 1
  count = 0
  for level in range(last, -1, -1):
    for index in range(module.num_blocks + 1):
      places[f"up_{level}_block_{index}"] = f"output_blocks.{count}.0"
      places[f"up_{level}_attention_{index}"] = f"output_blocks.{count}.1"
      count += 1
    # OpenAI numbers this layer after the attention of the level's last block,
    # or after the block itself if there is no attention.
    after = 2 if size // 2**level in module.attention else 1
    places[f"up_{level}_resample"] = f"output_blocks.{count - 1}.{after}"

  def name(path: str) -> str:
    block, _, part = path.partition("/")
    if block not in places:
      return PARTS[path]
    if part == "conv":
      part = "op" if block.startswith("down") else "conv"
    return f"{places[block]}.{PARTS.get(part, part)}"

  return name
