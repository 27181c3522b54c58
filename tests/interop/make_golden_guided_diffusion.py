"""Stores torch's outputs of ADM networks with seeded weights in a JSON file.

Run `python tests/interop/make_golden_guided_diffusion.py` once where torch is
installed. The network follows Dhariwal & Nichol 2021 (section 3 and appendix)
and uses the tensor names of their files. The JSON file also stores names and
shapes of the tensors, so the test makes the same weights with numpy alone.
"""

import json
import pathlib
import zlib

import numpy as np

GOLDEN = pathlib.Path(__file__).with_name("golden_guided_diffusion.json")
NUM_CLASSES = 7  # The released models have 1000 classes.
# Flags of guided-diffusion for small models; over all cases, each flag takes
# both values.
CASES = {
  "film_resblock_heads_first": {
    "image_size": 8,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "attention_resolutions": "4",
    "num_head_channels": 16,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "learn_sigma": True,
    "class_cond": True,
  },
  "addition_conv_new_order": {
    "image_size": 8,
    "num_channels": 64,
    "num_res_blocks": 2,
    "channel_mult": "1,1",
    "attention_resolutions": "8,4,2",
    "num_heads": 2,
    "use_scale_shift_norm": False,
    "use_new_attention_order": True,
    "learn_sigma": False,
    "class_cond": False,
  },
  "half_first_level": {
    "image_size": 16,
    "num_channels": 64,
    "num_res_blocks": 1,
    "channel_mult": "0.5,1,1",
    "attention_resolutions": "8",
    "num_heads": 4,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "learn_sigma": True,
    "class_cond": False,
  },
}


def weights(shapes, seed):
  """Returns a numpy state dict that keeps activations near one.

  Args:
    shapes: shapes of the tensors by name. A tensor's values depend on its name
      and the seed only.
  """

  def draw(name, shape):
    # RandomState draws the same numbers in every version of numpy.
    random = np.random.RandomState(zlib.crc32(name.encode()) ^ seed)
    value = random.random_sample(shape).astype(np.float32)
    if len(shape) == 1:
      # Draw scales around one and biases around zero.
      scale = name.endswith("weight")
      return value + 0.5 if scale else 0.4 * (value - 0.5)
    fan_in = int(np.prod(shape[1:]))
    return (value - 0.5) * np.float32(np.sqrt(12 / fan_in))

  return {name: draw(name, shape) for name, shape in shapes.items()}


def inputs(size, seed):
  """Returns images (channels last), timesteps and labels."""
  random = np.random.RandomState(100 + seed)
  images = (4 * random.random_sample((2, size, size, 3)) - 2).astype("float32")
  return images, np.array([3, 777]), np.array([6, 1])


def network(settings):
  """Builds the ADM network in torch."""
  import math

  import torch
  from torch import nn
  from torch.nn import functional

  base = settings["num_channels"]
  embed_dim = 4 * base

  def norm(channels):
    return nn.GroupNorm(32, channels)

  def resample(x, way):
    if way == "up":
      return functional.interpolate(x, scale_factor=2, mode="nearest")
    return functional.avg_pool2d(x, 2) if way == "down" else x

  class Block(nn.Module):
    def __init__(self, inputs, outputs, way=None):
      super().__init__()
      self.film, self.way = settings["use_scale_shift_norm"], way
      self.in_layers = nn.Sequential(
        norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
      )
      self.emb_layers = nn.Sequential(
        nn.SiLU(), nn.Linear(embed_dim, (1 + self.film) * outputs)
      )
      self.out_layers = nn.Sequential(
        norm(outputs),
        nn.SiLU(),
        nn.Dropout(0.0),
        nn.Conv2d(outputs, outputs, 3, padding=1),
      )
      self.skip_connection = (
        nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
      )

    def forward(self, x, embed):
      h = resample(self.in_layers[:-1](x), self.way)
      h = self.in_layers[-1](h)
      embed = self.emb_layers(embed)[:, :, None, None]
      if self.film:
        scale, shift = embed.chunk(2, dim=1)
        h = self.out_layers[0](h) * (1 + scale) + shift
        h = self.out_layers[1:](h)
      else:
        h = self.out_layers(h + embed)
      return self.skip_connection(resample(x, self.way)) + h

  class Attention(nn.Module):
    def __init__(self, channels):
      super().__init__()
      size = settings.get("num_head_channels", -1)
      self.heads = settings["num_heads"] if size == -1 else channels // size
      self.norm = norm(channels)
      self.qkv = nn.Conv1d(channels, 3 * channels, 1)
      self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, embed):
      batch, channels, height, width = x.shape
      flat = self.norm(x).reshape(batch, channels, height * width)
      size = channels // self.heads
      if settings.get("use_new_attention_order"):
        qkv = self.qkv(flat).reshape(batch, 3, self.heads, size, -1)
        q, k, v = qkv.unbind(1)
      else:
        qkv = self.qkv(flat).reshape(batch, self.heads, 3, size, -1)
        q, k, v = qkv.unbind(2)
      logits = torch.einsum("bhct,bhcs->bhts", q, k) / math.sqrt(size)
      h = torch.einsum("bhts,bhcs->bhct", logits.softmax(-1), v)
      h = self.proj_out(h.reshape(batch, channels, -1))
      return x + h.reshape(x.shape)

  class Down(nn.Module):
    def __init__(self, channels):
      super().__init__()
      self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x, embed):
      return self.op(x)

  class Up(nn.Module):
    def __init__(self, channels):
      super().__init__()
      self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, embed):
      return self.conv(resample(x, "up"))

  class First(nn.Conv2d):
    def forward(self, x, embed):
      return super().forward(x)

  class UNet(nn.Module):
    def __init__(self):
      super().__init__()
      factors = [float(f) for f in settings["channel_mult"].split(",")]
      widths = [int(factor * base) for factor in factors]
      sides = [int(s) for s in settings["attention_resolutions"].split(",")]
      attentive = [
        settings["image_size"] // 2**level in sides
        for level in range(len(widths))
      ]
      blocks = settings["num_res_blocks"]
      by_block = settings.get("resblock_updown", False)
      self.time_embed = nn.Sequential(
        nn.Linear(base, embed_dim), nn.SiLU(), nn.Linear(embed_dim, embed_dim)
      )
      if settings["class_cond"]:
        self.label_emb = nn.Embedding(NUM_CLASSES, embed_dim)
      width = widths[0]
      self.input_blocks = nn.ModuleList(
        [nn.ModuleList([First(3, width, 3, padding=1)])]
      )
      skips = [width]
      for level, outputs in enumerate(widths):
        for _ in range(blocks):
          parts = [Block(width, outputs)]
          width = outputs
          if attentive[level]:
            parts.append(Attention(width))
          self.input_blocks.append(nn.ModuleList(parts))
          skips.append(width)
        if level + 1 < len(widths):
          down = Block(width, width, "down") if by_block else Down(width)
          self.input_blocks.append(nn.ModuleList([down]))
          skips.append(width)
      self.middle_block = nn.ModuleList(
        [Block(width, width), Attention(width), Block(width, width)]
      )
      self.output_blocks = nn.ModuleList()
      for level in range(len(widths) - 1, -1, -1):
        for index in range(blocks + 1):
          parts = [Block(width + skips.pop(), widths[level])]
          width = widths[level]
          if attentive[level]:
            parts.append(Attention(width))
          if level > 0 and index == blocks:
            parts.append(Block(width, width, "up") if by_block else Up(width))
          self.output_blocks.append(nn.ModuleList(parts))
      outputs = 6 if settings["learn_sigma"] else 3
      self.out = nn.Sequential(
        norm(width), nn.SiLU(), nn.Conv2d(width, outputs, 3, padding=1)
      )

    def forward(self, x, t, label):
      half = base // 2
      frequency = torch.exp(-math.log(1e4) * torch.arange(half) / half)
      angle = t[:, None].to(x.dtype) * frequency[None]
      embed = self.time_embed(torch.cat([angle.cos(), angle.sin()], 1))
      if settings["class_cond"]:
        embed = embed + self.label_emb(label)
      skips = []
      for parts in self.input_blocks:
        for part in parts:
          x = part(x, embed)
        skips.append(x)
      for part in self.middle_block:
        x = part(x, embed)
      for parts in self.output_blocks:
        x = torch.cat([x, skips.pop()], 1)
        for part in parts:
          x = part(x, embed)
      return self.out(x)

  return UNet().eval()


def answer(settings, seed):
  """Returns the shapes of the tensors, and a part of the predicted noise."""
  import torch

  model = network(settings)
  shapes = {name: list(t.shape) for name, t in model.state_dict().items()}
  state = weights(shapes, seed)
  model.load_state_dict({n: torch.from_numpy(v) for n, v in state.items()})
  images, timesteps, labels = inputs(settings["image_size"], seed)
  with torch.no_grad():
    output = model(
      torch.from_numpy(images).permute(0, 3, 1, 2),
      torch.from_numpy(timesteps),
      torch.from_numpy(labels),
    )
  output = output[:, :3].permute(0, 2, 3, 1).numpy().ravel()
  return {
    "shapes": shapes,
    # Store every fifth number, to keep the file small.
    "output": [float(f"{value:.7g}") for value in output[::5]],
  }


def main():
  golden = {
    name: answer(settings, seed)
    for seed, (name, settings) in enumerate(CASES.items())
  }
  GOLDEN.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
  main()
