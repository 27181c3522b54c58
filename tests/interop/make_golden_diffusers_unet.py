"""Stores outputs of diffusers' UNet2DModels with seeded weights and configs.

Run `python tests/interop/make_golden_diffusers_unet.py` once where diffusers is
installed; it writes golden_diffusers_unet.json. The test makes the same configs
and weights with numpy alone. The file in the repository comes from diffusers
0.42.1.
"""

import hashlib
import json
import pathlib
import zlib

import numpy as np

GOLDEN = pathlib.Path(__file__).with_name("golden_diffusers_unet.json")
SIZE = 8
# Each variant has three configs, drawn from this seed and the next two.
# Together they try most settings both ways.
SEEDS = {"ddpm": 194, "film": 191, "class_conditional": 186}
CASES = [
  (variant, first + i) for variant, first in SEEDS.items() for i in range(3)
]


def config(variant, seed):
  """Draws a random config of a small UNet2DModel."""
  # RandomState draws the same numbers in every version of numpy.
  random = np.random.RandomState(zlib.crc32(f"{variant} {seed}".encode()))

  def pick(*values):
    return values[random.randint(len(values))]

  factors = pick((1, 2), (1, 1, 2), (1, 3))
  groups, width = pick((4, 8), (8, 8), (2, 8))
  attentive = [bool(random.randint(2)) for _ in factors]
  film = variant == "film" or (variant == "class_conditional" and pick(0, 1))
  resnet = variant == "film" or (film and pick(0, 1))

  def types(way, plain):
    return [f"Attn{way}Block2D" if a else plain for a in attentive]

  chosen = {
    "sample_size": SIZE,
    "in_channels": pick(1, 3),
    "block_out_channels": [width * factor for factor in factors],
    "layers_per_block": pick(1, 2),
    "freq_shift": pick(0, 1),
    "flip_sin_to_cos": pick(False, True),
    "downsample_padding": pick(0, 1),
    "attention_head_dim": pick(None, 4, 8),
    "norm_num_groups": groups,
    "norm_eps": pick(1e-6, 1e-5, 1e-2),
    "add_attention": pick(False, True, True),
    "time_embedding_dim": pick(None, 12),
    "down_block_types": types(
      "Down", "ResnetDownsampleBlock2D" if resnet else "DownBlock2D"
    ),
    "up_block_types": types(
      "Up", "ResnetUpsampleBlock2D" if resnet else "UpBlock2D"
    )[::-1],
  }
  chosen["out_channels"] = chosen["in_channels"]
  if film:
    chosen["resnet_time_scale_shift"] = "scale_shift"
    chosen["attn_norm_num_groups"] = pick(None, groups)
  if resnet:
    chosen |= {"downsample_type": "resnet", "upsample_type": "resnet"}
  if variant == "class_conditional":
    chosen["num_class_embeds"] = 5
  return chosen


def weights(shapes, seed):
  """Returns a numpy state dict that keeps activations near one.

  Args:
    shapes: shapes of the tensors by name. A tensor's values depend on its name
      and the seed only.
  """

  def draw(name, shape):
    random = np.random.RandomState(zlib.crc32(name.encode()) ^ seed)
    value = random.random_sample(shape).astype(np.float32)
    if len(shape) == 1:
      # Draw scales around one and biases around zero.
      scale = "norm" in name and name.endswith("weight")
      return value + 0.5 if scale else 0.4 * (value - 0.5)
    fan_in = int(np.prod(shape[1:]))
    return (value - 0.5) * np.float32(np.sqrt(12 / fan_in))

  return {name: draw(name, shape) for name, shape in shapes.items()}


def inputs(channels, seed):
  """Returns images (channels last), timesteps and labels."""
  random = np.random.RandomState(100 + seed)
  images = 4 * random.random_sample((2, SIZE, SIZE, channels)) - 2
  return images.astype(np.float32), np.array([3, 777]), np.array([4, 1])


def fingerprint(shapes):
  """Returns a hash of the names and shapes of a state dict."""
  text = json.dumps(sorted((n, list(s)) for n, s in shapes.items()))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def answer(config, seed):
  """Returns the output of diffusers' network of this config."""
  import torch
  from diffusers import UNet2DModel

  model = UNet2DModel(**config).eval()
  shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
  state = weights(shapes, seed)
  model.load_state_dict({n: torch.from_numpy(v) for n, v in state.items()})
  images, timesteps, labels = inputs(config["in_channels"], seed)
  labels = torch.from_numpy(labels) if config.get("num_class_embeds") else None
  with torch.no_grad():
    output = model(
      torch.from_numpy(images).permute(0, 3, 1, 2),
      torch.from_numpy(timesteps),
      class_labels=labels,
    ).sample
  # Store every second number, to keep the file small.
  return {
    "tensors": fingerprint(shapes),
    "output": [
      float(f"{value:.7g}")
      for value in output.permute(0, 2, 3, 1).numpy().ravel()[::2]
    ],
  }


def main():
  golden = {
    f"{variant}_{seed}": answer(config(variant, seed), seed)
    for variant, seed in CASES
  }
  GOLDEN.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
  main()
