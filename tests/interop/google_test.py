"""Tests imported Google checkpoints against their network, rewritten here."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from diffdistill.arrays import Condition
from diffdistill.interop import google
from diffdistill.interop.model import network_of

# Compiling tiny networks takes longer than running them, so optimise less.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)
CASES = {
  "cifar": {
    "image_size": 8,
    "mean_type": "x",
    "ch": 32,
    "emb_ch": 128,
    "ch_mult": (1, 1),
    "num_res_blocks": 1,
    "attn_resolutions": (4,),
    "num_heads": 1,
    "dropout": 0.2,
    "resblock_resample": True,
  },
  "imagenet": {
    "image_size": 8,
    "mean_type": "both",
    "ch": 64,
    "emb_ch": 96,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (4, 8),
    "num_heads": None,
    "head_dim": 32,
    "logsnr_input_type": "inv_cos",
    "resblock_resample": True,
  },
  "convolutions": {
    "image_size": 8,
    "mean_type": "v",
    "ch": 64,
    "emb_ch": 256,
    "ch_mult": (1, 1, 1),
    "num_res_blocks": 2,
    "attn_resolutions": (),
    "num_heads": 4,
  },
}
NUM_CLASSES = {"cifar": 0, "imagenet": 5, "convolutions": 0}


class Theirs(nn.Module):
  """The U-Net of Salimans & Ho 2022, with the tensor names of its code."""

  settings: Any
  num_classes: int
  out: int

  @nn.compact
  def __call__(self, x, logsnr, label):
    s = self.settings
    base = s["ch"]

    def block(h, name, width=None, way=None):
      return Block(width or h.shape[-1], way, name=name)(h, embed)

    def attend(h, name, wanted=True):
      if not wanted:
        return h
      return Attend(s["num_heads"], s.get("head_dim"), name=name)(h)

    def move(h, level, way):
      name = f"{way}_{level}.{way}sample"
      if s.get("resblock_resample", False):
        return block(h, name, way=way)
      if way == "up":
        return nn.Conv(h.shape[-1], (3, 3), name=name)(doubled(h))
      return nn.Conv(h.shape[-1], (3, 3), (2, 2), name=name)(h)

    noise = jnp.arctan(jnp.exp(-logsnr / 2)) / (jnp.pi / 2)
    index = jnp.arange(base // 2) / (base // 2 - 1)
    angle = 1000 * jnp.outer(noise, 10000.0**-index)
    embed = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)
    embed = nn.Dense(s["emb_ch"], name="dense0")(embed)
    embed = nn.Dense(s["emb_ch"], name="dense1")(nn.silu(embed))
    if self.num_classes:
      hot = jax.nn.one_hot(label, self.num_classes)
      embed += nn.Dense(s["emb_ch"], name="class_emb")(hot)

    h = nn.Conv(base, (3, 3), name="conv_in")(x)
    skips = [h]
    levels = range(len(s["ch_mult"]))
    for level in levels:
      for i in range(s["num_res_blocks"]):
        h = block(h, f"down_{level}.block_{i}", base * s["ch_mult"][level])
        here = h.shape[1] in s["attn_resolutions"]
        h = attend(h, f"down_{level}.attn_{i}", here)
        skips.append(h)
      if level != levels[-1]:
        h = move(h, level, "down")
        skips.append(h)
    h = attend(block(h, "mid.block_1"), "mid.attn_1")
    h = block(h, "mid.block_2")
    for level in reversed(levels):
      for i in range(s["num_res_blocks"] + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = block(h, f"up_{level}.block_{i}", base * s["ch_mult"][level])
        here = h.shape[1] in s["attn_resolutions"]
        h = attend(h, f"up_{level}.attn_{i}", here)
      if level:
        h = move(h, level, "up")
    h = nn.silu(nn.GroupNorm(name="norm_out")(h))
    return nn.Conv(self.out, (3, 3), name="conv_out")(h)


def doubled(h):
  return jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)


class Block(nn.Module):
  width: int
  way: str | None

  @nn.compact
  def __call__(self, x, embed):
    move = {
      "up": doubled,
      "down": lambda z: nn.avg_pool(z, (2, 2), (2, 2)),
      None: lambda z: z,
    }[self.way]
    h = move(nn.silu(nn.GroupNorm(name="norm1")(x)))
    h = nn.Conv(self.width, (3, 3), name="conv1")(h)
    film = nn.Dense(2 * self.width, name="temb_proj")(nn.silu(embed))
    film = film[:, None, None, :]
    scale, shift = film[..., : self.width], film[..., self.width :]
    h = nn.GroupNorm(name="norm2")(h) * (1 + scale) + shift
    h = nn.Conv(self.width, (3, 3), name="conv2")(nn.silu(h))
    x = move(x)
    if x.shape[-1] != self.width:
      x = nn.Dense(self.width, name="nin_shortcut")(x)
    return x + h


class Attend(nn.Module):
  num_heads: int | None
  head_dim: int | None

  @nn.compact
  def __call__(self, x):
    b, h, w, c = x.shape
    size = self.head_dim or c // self.num_heads
    tokens = nn.GroupNorm(name="norm")(x).reshape(b, h * w, c)
    q, k, v = (
      nn.DenseGeneral((c // size, size), name=name)(tokens) for name in "qkv"
    )
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(size)
    out = jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(logits), v)
    out = nn.DenseGeneral(c, axis=(-2, -1), name="proj_out")(out)
    return x + out.reshape(x.shape)


@functools.cache
def theirs(name):
  """Returns the network of a case, and random weights for it."""
  settings = CASES[name]
  out = 6 if settings["mean_type"] == "both" else 3
  module = Theirs(settings, NUM_CLASSES[name], out)
  size = settings["image_size"]
  x, t = jnp.zeros((1, size, size, 3)), jnp.zeros(1)
  shapes = jax.eval_shape(
    lambda: module.init(jax.random.key(0), x, t, jnp.zeros(1, jnp.int32))
  )["params"]
  random = np.random.default_rng(list(CASES).index(name))

  def draw(path, leaf):
    value = random.normal(size=leaf.shape).astype(np.float32)
    if path[-1].key == "kernel":
      outputs = leaf.shape[-2:] if path[-2].key in ("q", "k", "v") else None
      outputs = outputs or leaf.shape[-1:]
      return value / np.float32(np.sqrt(leaf.size / np.prod(outputs)))
    return 0.2 * value + (path[-1].key == "scale")

  return module, jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture
def saved(tmp_path):
  """Returns a function that writes weights in a training state to a file."""

  def save(params):
    path = tmp_path / "cifar_original"
    state = {"step": 3, "optimizer": None, "num_sample_steps": 1024}
    path.write_bytes(serialization.to_bytes({**state, "ema_params": params}))
    return path

  return save


@pytest.mark.parametrize("name", CASES)
def test_an_imported_network_gives_the_outputs_of_the_original(name, saved):
  module, params = theirs(name)
  model = google.read(saved(params), CASES[name])
  assert model.num_classes == NUM_CLASSES[name]
  assert "cifar_original" in model.origin
  outputs = {"x": "x0", "both": "both", "v": "v"}
  assert model.output == outputs[CASES[name]["mean_type"]]
  assert model.schedule == {
    "kind": "cosine",
    "logsnr_min": -20.0,
    "logsnr_max": 20.0,
  }
  assert model.precondition == {"kind": "identity", "noise": "angle"}
  x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
  logsnr, label = jnp.array([-3.0, 7.0]), jnp.array([4, 1])
  angle = jnp.arctan(jnp.exp(-logsnr / 2))
  expected = jit(module.apply)({"params": params}, x, logsnr, label)
  condition = Condition(label=label if model.num_classes else None)
  actual = jit(network_of(model).apply)(
    model.params, x, angle * 2 / jnp.pi, condition
  )
  size = float(jnp.std(expected))
  assert size > 0.1
  # The tolerance is for float32 rounding of 1e-5; importers promise 1e-4.
  np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-5 * size)


def test_checkpoints_of_older_versions_of_flax_are_read(saved):
  _, params = theirs("cifar")
  expected = google.read(saved(params), CASES["cifar"]).params

  def flattened(path, leaf):
    part = path[-2].key
    if part in ("q", "k", "v"):
      return leaf.reshape((len(leaf), -1) if leaf.ndim == 3 else -1)
    if part.startswith("norm"):
      return leaf.reshape(1, 1, 1, -1)
    return leaf

  older = jax.tree_util.tree_map_with_path(flattened, params)
  assert older["norm_out"]["scale"].ndim == 4
  actual = google.read(saved(older), CASES["cifar"]).params
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"resample": True}, "resample is no field of model.args; pass some of im"),
    ({"emb_ch": None}, "emb_ch is missing; pass that of the config"),
    ({"mean_type": "score"}, "mean_type is 'score'; pass one of x, eps, v"),
    ({"logsnr_input_type": "linear"}, "logsnr_input_type is 'linear', which"),
    ({"logsnr_max": 30.0}, r"logsnr_max is 30\.0, beyond"),
    ({"head_dim": 8}, "num_heads is 1 and head_dim is 8; pass one of them"),
    ({"ch": 48}, "ch is 48, which norms of 32 groups do not divide"),
    (
      {"ch": 64},
      r"the tensor conv_in/bias has shape \(32,\), .*\(64,\)",
    ),
    ({"num_res_blocks": 2}, r"the checkpoint has no tensor down_0\.block_1/c"),
    ({"attn_resolutions": ()}, r"the tensor down_1\.attn_0/k/bias is none of"),
    (
      {"mean_type": "both"},
      r"the tensor conv_out/bias has shape \(3,\)",
    ),
  ],
)
def test_invalid_settings_are_refused_by_name(change, message, saved):
  path = saved(theirs("cifar")[1])
  with pytest.raises(ValueError, match=message) as refusal:
    google.read(path, CASES["cifar"] | change)
  assert "\n" not in str(refusal.value)


def test_missing_damaged_and_other_files_are_refused(saved, tmp_path):
  def refused(path, message):
    with pytest.raises(ValueError, match=message) as refusal:
      google.read(path, CASES["cifar"])
    assert "\n" not in str(refusal.value)

  refused(tmp_path / "none", "there is no file")
  path = saved(theirs("cifar")[1])
  path.write_bytes(path.read_bytes()[:-5])
  refused(path, "cifar_original is damaged or no Flax checkpoint")
  for garbage in (b"", b"\xc1", b"PK\x03\x04 a zip"):
    path.write_bytes(garbage)
    refused(path, "cifar_original is damaged or no Flax checkpoint")
  for other in (
    3,
    {"params": {}},
    {"ema_params": np.ones(1)},
    {"ema_params": {"conv_in": np.ones(1)}},
  ):
    path.write_bytes(serialization.msgpack_serialize(other))
    refused(path, "holds no ema_params of a U-Net")
  _, params = theirs("cifar")
  refused(saved({**params, "x": np.ones(1)}), "the tensor x is none of this")
  params = {**params, "conv_out": jax.tree.map(np.copy, params["conv_out"])}
  params["conv_out"]["bias"][0] = np.nan
  refused(saved(params), "conv_out.*not finite")
