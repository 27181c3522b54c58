"""Reads NVIDIA's pickles of Karras et al. 2022: DDPM++, NCSN++ and ADM.

A pickle of EDM contains the network as an object, with the source code of its
classes, which is never read or run. `pickles` keeps the names, settings and
tensors of the classes. Their meaning is that of the published definition:

  precondition  EDMPrecond    c_skip, c_out, c_in, c_noise of Table 1
  model         SongUNet      our "song_unet", DDPM++ or NCSN++
                DhariwalUNet  our "unet" of style "film", ADM

The noise levels range from 0.002 to 80, as in the paper's sampler, or over the
smaller range of the model. Dropout is left at 0, since it affects only
training. The layers of augmentation labels are left out, because these labels
are zero when images are made. EDM marks "no class" by a zero vector; here, a
label outside the classes does. If the model was trained with label dropout, the
zero vector is its null label.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import numpy as np
from etils import epath

from diffdistill.interop.model import Fields, Model, network_of
from diffdistill.interop.pickled_names import Object
from diffdistill.interop.pickles import read_pickle
from diffdistill.interop.remaining import Remaining
from diffdistill.interop.tensors import Tensors

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0  # Karras et al. 2022, Table 1
# The settings that every model has, and their defaults.
SETTINGS = {
  "label_dim": 0,
  "augment_dim": 0,
  "channel_mult_emb": 4,
  "dropout": 0.1,
  "label_dropout": 0,
}
SONG = SETTINGS | {
  "model_channels": 128,
  "channel_mult": [1, 2, 2, 2],
  "num_blocks": 4,
  "attn_resolutions": [16],
  "embedding_type": "positional",
  "channel_mult_noise": 1,
  "encoder_type": "standard",
  "decoder_type": "standard",
  "resample_filter": [1, 1],
}
ADM = SETTINGS | {
  "model_channels": 192,
  "channel_mult": [1, 2, 3, 4],
  "num_blocks": 3,
  "attn_resolutions": [32, 16, 8],
}
# Maps our names of layers to EDM's; the first ones are layers of a block.
LAYERS = {
  "norm1/norm": "norm0",
  "conv1": "conv0",
  "embed": "affine",
  "norm2/film": "affine",
  "norm2/norm": "norm1",
  "conv2": "conv1",
  "skip": "skip",
  "norm/norm": "norm2",
  "qkv": "qkv",
  "out": "proj",
}
OTHERS = {
  "embed/dense1": "map_layer0",
  "embed/dense2": "map_layer1",
  "embed/label": "map_label",
  "norm_out/norm": "out_norm",
  "conv_out": "out_conv",
}
PARTS = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def read(path: epath.Path) -> Model:
  """Reads the averaged network ("ema") of a pickle.

  Raises:
    ValueError: if the file is damaged, or contains anything but such a network
      and plain containers; the message is one line and names it.
  """
  if not path.is_file():
    raise ValueError(f"there is no file {path}; pass a pickle of EDM's")
  content = read_pickle(path)
  try:
    return _model(content, f"EDM, {path.name}")
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  except (AttributeError, IndexError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path}: the network lacks a part or has it in another form; pass a"
      " pickle that EDM's training wrote"
    ) from error


def _model(content: Any, origin: str) -> Model:
  precond = content.get("ema") if isinstance(content, dict) else None
  name = precond.name if isinstance(precond, Object) else type(precond).__name__
  if not isinstance(precond, Object) or name != "EDMPrecond":
    raise ValueError(
      f"its ema is a {name[:99]}; pass a pickle whose ema is an EDMPrecond"
    )
  state = precond.state
  inner = state["_modules"]["model"]
  if inner.name not in ("SongUNet", "DhariwalUNet"):
    raise ValueError(
      f"its model is a {inner.name[:99]}; pass a SongUNet or a DhariwalUNet"
    )
  song = inner.name == "SongUNet"
  settings = _settings(inner.state["_init_kwargs"], SONG if song else ADM)
  tensors = _tensors(inner)
  if settings["num_blocks"] > len(tensors):
    raise ValueError(
      f"num_blocks is {settings['num_blocks']}, but the model has"
      f" {len(tensors)} tensors; pass a pickle that is whole"
    )
  size, classes = state["img_resolution"], state["label_dim"]
  model = Model(
    network=_song(settings, size) if song else _adm(settings, size),
    schedule={
      "kind": "edm",
      "sigma_min": max(SIGMA_MIN, float(state["sigma_min"])),
      "sigma_max": min(SIGMA_MAX, float(state["sigma_max"])),
    },
    output="x0",
    precondition={"kind": "edm", "sigma_data": float(state["sigma_data"])},
    image_shape=(size, size, state["img_channels"]),
    params={},
    num_classes=classes,
    null_label=classes > 0 and settings["label_dropout"] > 0,
    origin=origin,
  )
  return dataclasses.replace(model, params=_params(model, tensors))


def _settings(given: dict[str, Any], defaults: Fields) -> Fields:
  # These settings have no defaults; the precondition determines them.
  shapes = ("img_resolution", "in_channels", "out_channels")
  for name in given:
    if name not in defaults and name not in shapes:
      raise ValueError(
        f"the model has a setting {str(name)[:99]!r}, which its published"
        " definition has not; pass a model of that definition"
      )
  return {**defaults, **given}


def _common(settings: Fields, size: int) -> Fields:
  channels, multipliers = settings["model_channels"], settings["channel_mult"]
  heights = [size >> level for level in range(len(multipliers))]
  return {
    "channels": channels,
    "multipliers": tuple(multipliers),
    "num_blocks": settings["num_blocks"],
    # Leave out heights that occur at no level, because EDM ignores them.
    "attention": tuple(h for h in heights if h in settings["attn_resolutions"]),
    "embed_dim": channels * settings["channel_mult_emb"],
  }


def _song(settings: Fields, size: int) -> Fields:
  return {
    "kind": "song_unet",
    **_common(settings, size),
    "embedding": settings["embedding_type"],
    "num_waves": settings["model_channels"] * settings["channel_mult_noise"],
    "encoder": settings["encoder_type"],
    "decoder": settings["decoder_type"],
    "taps": tuple(settings["resample_filter"]),
  }


def _adm(settings: Fields, size: int) -> Fields:
  return {
    "kind": "unet",
    **_common(settings, size),
    "style": "film",
    "head_dim": 64,
    "group_size": 4,
    "epsilon": 1e-5,
    "cos_first": True,
    "frequency_shift": 0,
  }


def _tensors(module: Object) -> Tensors:
  """Returns the tensors of a module, with the names of torch's state dict."""
  tensors: Tensors = {}
  # Visit each module once and without recursion: a hostile pickle may have a
  # cycle.
  left, seen = [("", module)], set()
  while left:
    prefix, module = left.pop()
    if id(module) in seen:
      raise ValueError(
        f"the module {prefix[:99]!r} is in two places; pass"
        " a model of the published definition"
      )
    seen.add(id(module))
    state = module.state
    for name, tensor in {**state["_parameters"], **state["_buffers"]}.items():
      if tensor is not None:
        tensors[prefix + name] = tensor
    for name, child in state["_modules"].items():
      if child is not None:
        left.append((f"{prefix}{name}.", child))
  return tensors


def _params(model: Model, tensors: Tensors) -> Any:
  """Builds the tree of our network's weights."""
  song, size = model.network["kind"] == "song_unet", model.image_shape[0]
  left = Remaining(
    tensors={
      name: tensor
      for name, tensor in tensors.items()
      # Our network does not need these tensors. The first belongs to
      # augmentation labels, and the others repeat a setting.
      if not re.fullmatch(r"map_augment\.weight|.*\.resample_filter", name)
    },
    holder="the model",
    network="a network of its settings",
    remedy="pass a whole model of the published definition",
  )

  def take(name: str) -> np.ndarray:
    return left.take(name).astype(np.float32)

  def fill(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    *layer, part = (key.key for key in path)
    if layer == ["embed", "label"] and part == "bias" and not song:
      return np.zeros(leaf.shape, np.float32)
    if part == "frequency":
      return take("map_noise.freqs")
    name = f"{_name(layer, size, model.network)}.{PARTS[part]}"
    value = take(name)
    if layer == ["embed", "label"] and part == "kernel":
      # EDM's SongUNet multiplies one-hot labels by sqrt(classes).
      scale = math.sqrt(model.num_classes) if song else 1.0
      # Add a zero row for the null label, because EDM uses a zero vector.
      null = np.zeros((len(value), int(model.null_label)), np.float32)
      value = np.concatenate([scale * value, null], axis=1)
    try:
      return _laid_out(layer[-1], part, value, leaf.shape)
    except ValueError as error:
      raise ValueError(
        f"the tensor {name} is {value.shape}, which does not fit"
        f" {leaf.shape}; pass a model of the published definition"
      ) from error

  shapes = jax.eval_shape(network_of(model).init, jax.random.key(0))
  params = jax.tree_util.tree_map_with_path(fill, shapes)
  left.check_empty()
  return params


def _laid_out(
  layer: str, part: str, value: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
  """Returns a tensor in our layout; EDM's qkv outputs are (heads, size, 3)."""
  if layer == "qkv":
    *inputs, _, heads, size = shape
    value = value.reshape(heads, size, 3, *inputs)
    value = value.transpose(3, 2, 0, 1) if inputs else value.transpose(2, 0, 1)
  elif part == "kernel" and len(shape) == 4:
    value = value.transpose(2, 3, 1, 0)
  elif part == "kernel":
    # The layer is dense, or a convolution of one pixel.
    value = value.reshape(shape[::-1]).transpose()
  if value.shape != shape:
    raise ValueError("another shape")
  return np.ascontiguousarray(value)


def _name(layer: list[str], size: int, network: Fields) -> str:
  """Returns EDM's name of our layer."""
  whole, inner = "/".join(layer), "/".join(layer[1:])

  def at(level: int, what: str) -> str:
    return f"{size >> level}x{size >> level}_{what}"

  last = len(network["multipliers"]) - 1
  match layer[0].split("_"):
    case _ if whole in OTHERS:
      return OTHERS[whole]
    case ["conv", "in"]:
      return f"enc.{at(0, 'conv')}"
    case ["up", level, ("norm" | "conv") as kind, "out"]:
      return f"dec.{at(int(level), f'aux_{kind}')}"
    case ["down", level, "auxiliary"]:
      return f"enc.{at(int(level) + 1, 'aux_' + network['encoder'])}"
    case ["down", level, "resample"]:
      block = f"enc.{at(int(level) + 1, 'down')}"
    case ["up", level, "resample"]:
      block = f"dec.{at(int(level) - 1, 'up')}"
    case ["middle", "block", "2"]:
      block = f"dec.{at(last, 'in1')}"
    case ["middle", *_]:
      block = f"dec.{at(last, 'in0')}"
    case [way, level, _, index]:
      half = {"down": "enc", "up": "dec"}[way]
      block = f"{half}.{at(int(level), f'block{index}')}"
    case _:
      raise ValueError(f"{whole} has no name there")
  return f"{block}.{LAYERS[inner]}"
