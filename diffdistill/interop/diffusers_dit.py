"""Converts diffusers' DiTTransformer2DModel to our DiT, and back.

Each block of theirs has its own embedding of the noise level and of the class.
In the published weights all these embeddings are equal; our DiT has only one.
Their network may also predict a variance in a second half of its output
channels. The variance is left out, because nothing here reads it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from diffdistill.arrays import Params
from diffdistill.interop.diffusers_dit_config import DEFAULTS, checked
from diffdistill.interop.model import Fields, Model, network_of
from diffdistill.interop.remaining import Remaining
from diffdistill.interop.tensors import Tensors
from diffdistill.networks.dit import SINUSOID, DiT
from diffdistill.networks.layers import EPSILON, EXPANSION

# Maps our names of the layers of a block to diffusers' names.
BLOCK = {
  "film": "norm1.linear",
  "out": "attn1.to_out.0",
  "dense1": "ff.net.0.proj",
  "dense2": "ff.net.2",
}
EMBED = "norm1.emb.timestep_embedder.linear_"
TABLE = "norm1.emb.class_embedder.embedding_table.weight"
QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")

# A function that returns the tensor of a name. It refuses a tensor of another
# shape.
Take = Callable[[str, tuple[int, ...]], Float[np.ndarray, "..."]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
  """The sizes of a transformer, and whether its attention has biases."""

  heads: int
  width: int
  depth: int
  channels: int
  outputs: int
  side: int
  patch: int
  classes: int
  bias: bool

  @classmethod
  def of(cls, config: dict[str, Any]) -> "Sizes":
    """Returns the sizes in a checked config."""
    heads = config["num_attention_heads"]
    return cls(
      heads=heads,
      width=heads * config["attention_head_dim"],
      depth=config["num_layers"],
      channels=config["in_channels"],
      outputs=config["out_channels"] or config["in_channels"],
      side=config["sample_size"],
      patch=config["patch_size"],
      classes=config["num_embeds_ada_norm"],
      bias=config["attention_bias"],
    )


def read(
  config: dict[str, Any], tensors: Tensors
) -> tuple[Fields, Params, tuple[int, int, int], int, bool]:
  """Reads a transformer from its config and its tensors.

  Returns (network, params, image_shape, num_classes, null_label).

  The network's noise input is the timestep divided by 1000.

  Args:
    config: the fields of its config.json.
    tensors: all tensors of its state dict.

  Raises:
    ValueError: if our network does not have a field, or the tensors do not fit
      the config; the message is one line and names the field or tensor.
  """
  sizes = Sizes.of(checked(config))
  left = Remaining(
    tensors=dict(tensors),
    holder="the transformer",
    network="a DiTTransformer2DModel of this config",
    remedy="pass whole weights with their own config.json",
  )
  embed, blocks = _blocks(left.take, sizes)
  width, patch = sizes.width, sizes.patch
  channels, outputs = sizes.channels, sizes.outputs
  weight = left.take("pos_embed.proj.weight", (width, channels, patch, patch))
  out = _dense(left.take, "proj_out_2", width, patch**2 * outputs)
  params = {
    "embed": embed,
    "patches": {
      "kernel": weight.transpose(2, 3, 1, 0).reshape(-1, width),
      "bias": left.take("pos_embed.proj.bias", (width,)),
    },
    "blocks": blocks,
    "film_out": _dense(left.take, "proj_out_1", width, 2 * width),
    "out": jax.tree.map(lambda leaf: _mean_of(leaf, outputs, channels), out),
  }
  left.check_empty()
  params = jax.tree.map(
    lambda leaf: np.ascontiguousarray(leaf, np.float32), params
  )
  network = {
    "kind": "dit",
    "width": width,
    "depth": sizes.depth,
    "num_heads": sizes.heads,
    "patch": patch,
  }
  image_shape = (sizes.side, sizes.side, channels)
  return network, params, image_shape, sizes.classes, True


def write(model: Model) -> tuple[dict[str, Any], Tensors]:
  """Returns the config and the tensors of a DiTTransformer2DModel.

  Raises:
    ValueError: if the class cannot represent the model; the message names the
      field.
  """
  module = _representable(model)
  side, _, channels = model.image_shape
  config = {
    "_class_name": "DiTTransformer2DModel",
    **DEFAULTS,
    "num_attention_heads": module.num_heads,
    "attention_head_dim": module.width // module.num_heads,
    "in_channels": channels,
    "out_channels": channels,
    "num_layers": module.depth,
    "sample_size": side,
    "patch_size": module.patch,
    "num_embeds_ada_norm": model.num_classes,
    "norm_eps": EPSILON,
  }
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), model.params)
  kernel, embed = params["patches"]["kernel"], params["embed"]
  kernel = kernel.reshape(module.patch, module.patch, channels, module.width)
  tensors = {
    "pos_embed.proj.weight": kernel.transpose(3, 2, 0, 1),
    "pos_embed.proj.bias": params["patches"]["bias"],
    **_linear("proj_out_1", params["film_out"]),
    **_linear("proj_out_2", params["out"]),
  }
  for i in range(module.depth):
    name = f"transformer_blocks.{i}"
    block = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
    # Our embedding of a class is a row of the kernel plus the layer's bias.
    table = embed["label"]["kernel"] + embed["label"]["bias"][None]
    tensors[f"{name}.{TABLE}"] = table
    for j in (1, 2):
      tensors |= _linear(f"{name}.{EMBED}{j}", embed[f"dense{j}"])
    for ours, theirs in BLOCK.items():
      tensors |= _linear(f"{name}.{theirs}", block[ours])
    for j, theirs in enumerate(QKV):
      part = {
        "kernel": block["qkv"]["kernel"][:, j].reshape(module.width, -1),
        "bias": block["qkv"]["bias"][j].reshape(-1),
      }
      tensors |= _linear(f"{name}.{theirs}", part)
  return config, {k: np.ascontiguousarray(v) for k, v in tensors.items()}


def _representable(model: Model) -> DiT:
  """Returns a model's module if a DiTTransformer2DModel can represent it.

  Raises:
    ValueError: if it cannot represent the model; the message names the field.
  """
  module = network_of(model).module
  for wrong, what in (
    (not isinstance(module, DiT), f"network is a {type(module).__name__}"),
    (
      len(set(model.image_shape[:2])) > 1,
      f"image_shape is {model.image_shape}",
    ),
    (model.output == "both", "output is 'both'"),
    (not model.num_classes, "num_classes is 0"),
    (not model.null_label, "null_label is False"),
  ):
    if wrong:
      raise ValueError(
        f"the model's {what}, and diffusers' DiT is a transformer of square"
        " images, of one output, told a class or that there is none; export it"
        " as safetensors or stablehlo"
      )
  assert isinstance(module, DiT)
  return module


def _dense(
  take: Take, name: str, inputs: int, outputs: int, bias: bool = True
) -> Params:
  return {
    "kernel": take(f"{name}.weight", (outputs, inputs)).T,
    "bias": take(f"{name}.bias", (outputs,)) if bias else np.zeros(outputs),
  }


def _linear(name: str, dense: Params) -> Tensors:
  """Returns the tensors of a dense layer under torch's names."""
  return {f"{name}.weight": dense["kernel"].T, f"{name}.bias": dense["bias"]}


def _blocks(take: Take, sizes: Sizes) -> tuple[Params, Params]:
  """Returns the embedding that all blocks share, and the stacked blocks.

  Raises:
    ValueError: if a block's embedding differs from that of the first block.
  """
  embeds, blocks = [], []
  for i in range(sizes.depth):
    name = f"transformer_blocks.{i}"
    embeds.append(_embedding(take, name, sizes))
    blocks.append(_block(take, name, sizes))
    if not all(
      map(np.array_equal, *map(jax.tree.leaves, (embeds[0], embeds[i])))
    ):
      raise ValueError(
        f"{name}.norm1.emb is not that of block 0, and our DiT has one for all;"
        " pass weights converted from the released code, where they are copies"
      )
  return embeds[0], jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)


def _embedding(take: Take, name: str, sizes: Sizes) -> Params:
  width = sizes.width
  return {
    "dense1": _dense(take, f"{name}.{EMBED}1", SINUSOID, width),
    "dense2": _dense(take, f"{name}.{EMBED}2", width, width),
    "label": {
      # The last row of the table, after the rows of the classes, is the
      # embedding of "no class".
      "kernel": take(f"{name}.{TABLE}", (sizes.classes + 1, width)),
      "bias": np.zeros(width),
    },
  }


def _block(take: Take, name: str, sizes: Sizes) -> Params:
  width = sizes.width
  shapes = {
    "film": (width, 6 * width),
    "out": (width, width),
    "dense1": (width, EXPANSION * width),
    "dense2": (EXPANSION * width, width),
  }
  qkv = [
    _dense(take, f"{name}.{part}", width, width, sizes.bias) for part in QKV
  ]
  kernel = np.stack([part["kernel"] for part in qkv], axis=1)
  return {
    "qkv": {
      "kernel": kernel.reshape(width, 3, sizes.heads, -1),
      "bias": np.stack([part["bias"] for part in qkv]).reshape(
        3, sizes.heads, -1
      ),
    },
    **{
      ours: _dense(take, f"{name}.{theirs}", *shapes[ours])
      for ours, theirs in BLOCK.items()
    },
  }


def _mean_of(
  leaf: Float[np.ndarray, "..."], outputs: int, channels: int
) -> Float[np.ndarray, "..."]:
  """Keeps the weights that predict the image; drops the variance's weights."""
  pixels = leaf.reshape(*leaf.shape[:-1], -1, outputs)[..., :channels]
  return pixels.reshape(*leaf.shape[:-1], -1)
