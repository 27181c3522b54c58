"""Stores torch's outputs of the networks of Karras et al. 2022 in a JSON file.

Run `python tests/interop/make_golden_edm.py` once where torch is installed; it
writes golden_edm.json. The test makes the same weights with numpy alone and
pickles them as EDM's training does. The networks here follow the published
definition (SongUNet and DhariwalUNet of NVIDIA's EDM) as functions of a state
dict.
"""

import json
import pathlib

import numpy as np

GOLDEN = pathlib.Path(__file__).with_name("golden_edm.json")
SIGMAS = (0.1, 1.0, 20.0)
# FAMILIES holds the settings that define a family; CHOICES holds the values to
# choose from for the other settings.
FAMILIES = {
  "ddpmpp": {
    "model_type": "SongUNet",
    "embedding_type": "positional",
    "encoder_type": "standard",
    "channel_mult_noise": 1,
    "resample_filter": [1, 1],
  },
  "ncsnpp": {
    "model_type": "SongUNet",
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
  },
  "adm": {"model_type": "DhariwalUNet"},
}
CHOICES = {
  "img_resolution": (4, 8),
  "img_channels": (1, 3),
  "label_dim": (0, 3),
  "label_dropout": (0, 0.1),
  "augment_dim": (0, 9),
  "channel_mult_emb": (2, 4),
  "num_blocks": (1, 2),
  "attn_resolutions": ([4], [8, 4], [8]),
}


def configuration(family, seed):
  """Draws random settings of a tiny model of a family."""
  random = np.random.RandomState(seed)
  settings = {name: c[random.randint(len(c))] for name, c in CHOICES.items()}
  song = family != "adm"
  # In ADM an attention head has 64 channels, so a level has at least 64.
  settings["model_channels"] = 8 * random.randint(1, 4) if song else 64
  multipliers = ([1, 2], [2, 2], [2, 1]) if song else ([1], [1, 1], [1, 2])
  settings["channel_mult"] = multipliers[random.randint(3)]
  settings["sigma_data"] = (0.5, 0.7)[random.randint(2)]
  return {**settings, **FAMILIES[family]}


CASES = {
  f"{family}_{seed}": (configuration(family, seed), seed)
  for family, seeds in (
    ("ddpmpp", (1, 2, 3)),
    ("ncsnpp", (4, 5, 6)),
    ("adm", (7, 8, 9)),
  )
  for seed in seeds
}
# This model has an encoder and a decoder of kind "skip", and belongs to no
# family.
CASES["skip_10"] = (
  {
    **configuration("ddpmpp", 10),
    "encoder_type": "skip",
    "decoder_type": "skip",
    "resample_filter": [1, 3, 3, 1],
    "channel_mult": [1, 2, 1],
  },
  10,
)


def layers(c):
  """Yields (name, kind, inputs, outputs, resampling, attention) per layer."""
  song, channels = c["model_type"] == "SongUNet", c["model_channels"]
  multipliers, width, skips = c["channel_mult"], c["img_channels"], []
  last = len(multipliers) - 1
  auxiliary = width

  def at(level, half, what):
    side = c["img_resolution"] >> level
    attention = side in c["attn_resolutions"]
    return f"{half}.{side}x{side}_{what}", attention

  for level, multiplier in enumerate(multipliers):
    if level == 0:
      first = channels if song else channels * multiplier
      yield at(0, "enc", "conv")[0], "conv", width, first, None, False
      width = first
    else:
      name, _ = at(level, "enc", "down")
      yield name, "block", width, width, "down", False
      kind = c["encoder_type"] if song else "standard"
      if kind != "standard":
        name, _ = at(level, "enc", f"aux_{kind}")
        yield name, f"aux_{kind}", auxiliary, width, "down", False
        auxiliary = width if kind == "residual" else auxiliary
    skips.append(width)
    for index in range(c["num_blocks"]):
      name, attention = at(level, "enc", f"block{index}")
      yield name, "block", width, channels * multiplier, None, attention
      width = channels * multiplier
      skips.append(width)
  for level, multiplier in reversed(list(enumerate(multipliers))):
    if level == last:
      yield at(level, "dec", "in0")[0], "block", width, width, None, True
      yield at(level, "dec", "in1")[0], "block", width, width, None, False
    else:
      yield at(level, "dec", "up")[0], "block", width, width, "up", False
    for index in range(c["num_blocks"] + 1):
      name, attention = at(level, "dec", f"block{index}")
      attention = attention and (not song or index == c["num_blocks"])
      total, width = width + skips.pop(), channels * multiplier
      yield name, "block", total, width, None, attention
    if song and (level == 0 or c.get("decoder_type") == "skip"):
      name, _ = at(level, "dec", "aux")
      yield name, "out", width, c["img_channels"], None, False
  if not song:
    yield "out", "out", width, c["img_channels"], None, False


def shapes(c):
  """Yields (name, shape) for every tensor of the state dict."""
  song, channels = c["model_type"] == "SongUNet", c["model_channels"]
  embed = channels * c["channel_mult_emb"]
  waves = channels * c["channel_mult_noise"] if song else channels
  taps = len(c["resample_filter"]) if song else 2

  def layer(name, inputs, outputs, *sides, bias=True):
    yield f"{name}.weight", (outputs, inputs, *sides)
    if bias:
      yield f"{name}.bias", (outputs,)

  def norm(name, width):
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)

  def resample_filter(name, way):
    if way:
      yield f"{name}.resample_filter", (1, 1, taps, taps)

  if song and c["embedding_type"] == "fourier":
    yield "map_noise.freqs", (waves // 2,)
  if c["label_dim"]:
    width = waves if song else embed
    yield from layer("map_label", c["label_dim"], width, bias=song)
  if c["augment_dim"]:
    yield from layer("map_augment", c["augment_dim"], waves, bias=False)
  yield from layer("map_layer0", waves, embed)
  yield from layer("map_layer1", embed, embed)
  for name, kind, inputs, outputs, way, attention in layers(c):
    if kind == "block":
      yield from norm(f"{name}.norm0", inputs)
      yield from layer(f"{name}.conv0", inputs, outputs, 3, 3)
      yield from resample_filter(f"{name}.conv0", way)
      yield from layer(f"{name}.affine", embed, outputs * (1 if song else 2))
      yield from norm(f"{name}.norm1", outputs)
      yield from layer(f"{name}.conv1", outputs, outputs, 3, 3)
      if inputs != outputs or (way and song):
        yield from layer(f"{name}.skip", inputs, outputs, 1, 1)
      if way:
        yield from resample_filter(f"{name}.skip", way)
      if attention:
        yield from norm(f"{name}.norm2", outputs)
        yield from layer(f"{name}.qkv", outputs, 3 * outputs, 1, 1)
        yield from layer(f"{name}.proj", outputs, outputs, 1, 1)
    elif kind == "out":
      yield from norm(f"{name}_norm", inputs)
      yield from layer(f"{name}_conv", inputs, outputs, 3, 3)
      higher = name.startswith("dec") and not name.startswith(
        f"dec.{c['img_resolution'] >> len(c['channel_mult']) - 1}x"
      )
      if higher and c.get("decoder_type") == "skip":
        yield from resample_filter(f"{name}_up", "up")
    else:
      side = 1 if kind == "aux_skip" else 3
      yield from layer(name, inputs, outputs, side, side)
      if kind == "aux_residual":
        yield from resample_filter(name, way)
      if kind == "aux_skip":
        down = name.replace("aux_skip", "aux_down")
        yield from resample_filter(down, way)


def weights(c, seed):
  """Returns a numpy state dict that keeps activations near one."""
  # RandomState draws the same numbers in every version of numpy.
  random = np.random.RandomState(seed)

  def draw(name, shape):
    if name.endswith("resample_filter"):
      taps = np.asarray(c.get("resample_filter", [1, 1]), np.float32)
      return (np.outer(taps, taps) / taps.sum() ** 2).reshape(shape)
    value = random.random_sample(shape).astype(np.float32)
    if name.endswith("freqs"):
      return 32 * (value - np.float32(0.5))
    if len(shape) == 1:
      # Draw scales around one and biases around zero.
      is_scale = name.endswith("weight")
      return value + 0.5 if is_scale else 0.4 * (value - 0.5)
    fan_in = int(np.prod(shape[1:]))
    return (value - 0.5) * np.float32(np.sqrt(12 / fan_in))

  return {name: draw(name, shape) for name, shape in shapes(c)}


def inputs(c, seed):
  """Returns x_t (channels last), sigmas and labels; label -1 means no label."""
  random = np.random.RandomState(100 + seed)
  shape = (len(SIGMAS), *2 * (c["img_resolution"],), c["img_channels"])
  x = 2 * random.random_sample(shape) - 1
  x = x * (1 + np.asarray(SIGMAS))[:, None, None, None]
  return x.astype(np.float32), np.asarray(SIGMAS, np.float32), [0, 2, -1]


def answer(c, seed):
  """Returns the denoised images D(x; sigma) of torch, in float64."""
  import torch
  from torch.nn import functional

  song, silu = c["model_type"] == "SongUNet", functional.silu
  scale, epsilon = (0.5**0.5, 1e-6) if song else (1.0, 1e-5)
  w = {k: torch.from_numpy(v).double() for k, v in weights(c, seed).items()}

  def dense(name, x):
    return functional.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

  def conv(name, x):
    weight = w[f"{name}.weight"]
    side = weight.shape[-1] // 2
    return functional.conv2d(x, weight, w[f"{name}.bias"], padding=side)

  def norm(name, x):
    groups = min(32, x.shape[1] // 4)
    weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    return functional.group_norm(x, groups, weight, bias, epsilon)

  def resample(name, x, way, pad=None):
    if not way:
      return x
    f = w[f"{name}.resample_filter"]
    pad = (f.shape[-1] - 1) // 2 if pad is None else pad
    f = f.repeat(x.shape[1], 1, 1, 1)
    if way == "down":
      return functional.conv2d(x, f, stride=2, padding=pad, groups=x.shape[1])
    return functional.conv_transpose2d(
      x, 4 * f, stride=2, padding=pad, groups=x.shape[1]
    )

  def block(name, x, emb, way, attention):
    h = conv(
      f"{name}.conv0",
      resample(f"{name}.conv0", silu(norm(f"{name}.norm0", x)), way),
    )
    affine = dense(f"{name}.affine", emb)[:, :, None, None]
    if song:
      h = norm(f"{name}.norm1", h + affine)
    else:
      gain, shift = affine.chunk(2, dim=1)
      h = norm(f"{name}.norm1", h) * (1 + gain) + shift
    h = conv(f"{name}.conv1", silu(h))
    x = resample(f"{name}.skip", x, way)
    if f"{name}.skip.weight" in w:
      x = conv(f"{name}.skip", x)
    h = scale * (h + x)
    if not attention:
      return h
    n, width, _, _ = h.shape
    heads = 1 if song else width // 64
    qkv = conv(f"{name}.qkv", norm(f"{name}.norm2", h))
    # EDM orders the channels as (head, channel of the head, query/key/value).
    q, k, v = qkv.reshape(n, heads, width // heads, 3, -1).unbind(3)
    logits = torch.einsum("nhcq,nhck->nhqk", q, k) / (width // heads) ** 0.5
    a = torch.einsum("nhqk,nhck->nhcq", logits.softmax(-1), v)
    return scale * (h + conv(f"{name}.proj", a.reshape(h.shape)))

  def embedding(noise, one_hot):
    width = w["map_layer0.weight"].shape[1]
    if "map_noise.freqs" in w:
      angle = 2 * np.pi * noise[:, None] * w["map_noise.freqs"]
    else:
      powers = torch.arange(width // 2).double() / (width // 2 - song)
      angle = noise[:, None] * 1e-4**powers
    waves = [angle.cos(), angle.sin()]
    emb = torch.cat(waves[::-1] if song else waves, dim=1)
    if song and c["label_dim"]:
      emb = emb + dense("map_label", one_hot * c["label_dim"] ** 0.5)
    emb = dense("map_layer1", silu(dense("map_layer0", emb)))
    if not song and c["label_dim"]:
      emb = emb + dense("map_label", one_hot)
    return silu(emb)

  def network(x, noise, one_hot):
    emb, skips, small, out = embedding(noise, one_hot), [], x, None
    for name, kind, _, _, way, attention in layers(c):
      if kind == "conv":
        x = conv(name, x)
      elif kind == "aux_residual":
        # Add a border of zeros that is wide enough for the convolution and for
        # the filter after it.
        side = 1 + (w[f"{name}.resample_filter"].shape[-1] - 1) // 2
        small = functional.conv2d(small, w[f"{name}.weight"], padding=side)
        small = resample(name, small, "down", pad=0)
        small = small + w[f"{name}.bias"][:, None, None]
        x = small = skips[-1] = (x + small) / 2**0.5
      elif kind == "aux_skip":
        small = resample(name.replace("aux_skip", "aux_down"), small, "down")
        x = skips[-1] = x + conv(name, small)
      elif kind == "out":
        update = conv(f"{name}_conv", silu(norm(f"{name}_norm", x)))
        out = (
          update if out is None else update + resample(f"{name}_up", out, "up")
        )
      else:
        if name.startswith("dec") and "block" in name:
          x = torch.cat([x, skips.pop()], dim=1)
        x = block(name, x, emb, way, attention)
      if name.startswith("enc") and "aux" not in name:
        skips.append(x)
    return out

  x, sigma, labels = inputs(c, seed)
  x = torch.from_numpy(x).double().permute(0, 3, 1, 2)
  sigma = torch.from_numpy(sigma).double()
  one_hot = torch.zeros(len(labels), max(1, c["label_dim"])).double()
  for row, label in enumerate(labels):
    if label >= 0:
      one_hot[row, min(label, one_hot.shape[1] - 1)] = 1
  total = sigma**2 + c["sigma_data"] ** 2
  column = (slice(None), None, None, None)
  raw = network(x / total.sqrt()[column], sigma.log() / 4, one_hot)
  skip, gain = (
    c["sigma_data"] ** 2 / total,
    sigma * c["sigma_data"] / total.sqrt(),
  )
  d = (skip[column] * x + gain[column] * raw).permute(0, 2, 3, 1).numpy()
  flat = d.reshape(len(SIGMAS), -1)
  return {
    # Store some numbers, and two sums that depend on all of them.
    "some": np.round(flat[:, ::11], 6).tolist(),
    "sum": np.round(flat.sum(1), 5).tolist(),
    "squares": np.round((flat**2).sum(1), 5).tolist(),
  }


def main():
  golden = {name: answer(*case) for name, case in CASES.items()}
  GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
  main()
