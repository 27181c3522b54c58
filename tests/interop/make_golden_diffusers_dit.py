"""Stores outputs of diffusers' DiT with seeded weights in a JSON file.

Run `python tests/interop/make_golden_diffusers_dit.py` once where torch and
diffusers are installed. The test makes the same weights with numpy alone. The
file in the repository comes from diffusers 0.42.1.
"""

import json
import pathlib

import numpy as np

GOLDEN = pathlib.Path(__file__).with_name("golden_diffusers_dit.json")
# This config.json is like that of the published weights, but smaller.
CONFIG = {
  "_class_name": "DiTTransformer2DModel",
  "num_attention_heads": 2,
  "attention_head_dim": 8,
  "in_channels": 4,
  "out_channels": 8,
  "num_layers": 3,
  "dropout": 0.0,
  "norm_num_groups": 32,
  "attention_bias": True,
  "sample_size": 8,
  "patch_size": 2,
  "activation_fn": "gelu-approximate",
  "num_embeds_ada_norm": 5,
  "upcast_attention": False,
  "norm_type": "ada_norm_zero",
  "norm_elementwise_affine": False,
  "norm_eps": 1e-5,
}
CASES = {
  "published": CONFIG,
  "no_attention_bias": CONFIG
  | {
    "num_attention_heads": 3,
    "attention_head_dim": 4,
    "in_channels": 3,
    "out_channels": None,
    "num_layers": 1,
    "attention_bias": False,
    "patch_size": 4,
    "norm_eps": 1e-6,
  },
  "one_head": CONFIG
  | {
    "num_attention_heads": 1,
    "in_channels": 1,
    "out_channels": 1,
    "num_layers": 2,
    "sample_size": 5,
    "patch_size": 1,
    "num_embeds_ada_norm": 2,
  },
}
TIMESTEPS = (37, 981)


def shapes(config):
  """Yields (name, shape) for every tensor of the state dict, in order."""
  width = config["num_attention_heads"] * config["attention_head_dim"]
  inputs, patch = config["in_channels"], config["patch_size"]

  def linear(name, inputs, outputs, bias=True):
    yield f"{name}.weight", (outputs, inputs)
    if bias:
      yield f"{name}.bias", (outputs,)

  yield "pos_embed.proj.weight", (width, inputs, patch, patch)
  yield "pos_embed.proj.bias", (width,)
  for i in range(config["num_layers"]):
    name = f"transformer_blocks.{i}"
    embed = f"{name}.norm1.emb"
    yield from linear(f"{embed}.timestep_embedder.linear_1", 256, width)
    yield from linear(f"{embed}.timestep_embedder.linear_2", width, width)
    rows = config["num_embeds_ada_norm"] + 1
    yield f"{embed}.class_embedder.embedding_table.weight", (rows, width)
    yield from linear(f"{name}.norm1.linear", width, 6 * width)
    for part in ("to_q", "to_k", "to_v"):
      bias = config["attention_bias"]
      yield from linear(f"{name}.attn1.{part}", width, width, bias)
    yield from linear(f"{name}.attn1.to_out.0", width, width)
    yield from linear(f"{name}.ff.net.0.proj", width, 4 * width)
    yield from linear(f"{name}.ff.net.2", 4 * width, width)
  yield from linear("proj_out_1", width, 2 * width)
  outputs = config["out_channels"] or inputs
  yield from linear("proj_out_2", width, patch**2 * outputs)


def weights(config):
  """Returns a numpy state dict where all blocks have the same embeddings."""
  # RandomState draws the same numbers in every version of numpy.
  random = np.random.RandomState(config["num_layers"])
  state = {}
  for name, shape in shapes(config):
    value = random.random_sample(shape).astype(np.float32) - np.float32(0.5)
    if "embedding_table" in name:
      value *= 4
    elif len(shape) > 1:
      value *= np.float32(np.sqrt(12 / np.prod(shape[1:])))
    if ".norm1.emb." in name:
      first = f"transformer_blocks.0.norm1{name.partition('.norm1')[2]}"
      value = state.get(first, value)
    state[name] = value
  return state


def inputs(config):
  """Returns two images (channels last) and labels; the second is no class."""
  side, channels = config["sample_size"], config["in_channels"]
  random = np.random.RandomState(100 + config["num_layers"])
  shape = (len(TIMESTEPS), side, side, channels)
  images = (4 * random.random_sample(shape) - 2).astype(np.float32)
  return images, np.array([1, config["num_embeds_ada_norm"]], np.int32)


def answer(config, state):
  """Returns the output of diffusers in float64, channels last."""
  import torch
  from diffusers import DiTTransformer2DModel

  model = DiTTransformer2DModel.from_config(config).eval()
  model.load_state_dict(
    {name: torch.tensor(value) for name, value in state.items()}
  )
  images, label = map(torch.from_numpy, inputs(config))
  with torch.no_grad():
    output = model.double()(
      images.permute(0, 3, 1, 2).double(),
      timestep=torch.tensor(TIMESTEPS),
      class_labels=label,
    ).sample
  return output.permute(0, 2, 3, 1).numpy()


if __name__ == "__main__":
  # Keep the predicted noise; the other channels are a variance that nothing
  # reads.
  answers = {
    name: np.round(
      answer(config, weights(config))[..., : config["in_channels"]], 6
    ).tolist()
    for name, config in CASES.items()
  }
  GOLDEN.write_text(json.dumps(answers) + "\n")
