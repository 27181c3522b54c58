"""Tests imported UNet2DModels against stored outputs of diffusers."""

import dataclasses
import functools
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffdistill.arrays import Condition
from diffdistill.interop import (
  diffusers_unet,
  diffusers_unet_config,
  unet_layers,
)
from diffdistill.interop.model import Model, network_of
from diffdistill.networks.embeddings import sinusoid
from diffdistill.networks.unet import UNet

HERE = pathlib.Path(__file__).parent
MAKER = runpy.run_path(str(HERE / "make_golden_diffusers_unet.py"))
GOLDEN = json.loads(MAKER["GOLDEN"].read_text())
# Compiling tiny networks takes longer than running them, so optimise less.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


# Tests trace the same networks again and again, so cache their shapes.
shapes_of = functools.cache(unet_layers.shapes_of)


@pytest.fixture(autouse=True, scope="module")
def traced_once():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(unet_layers, "shapes_of", shapes_of)
    yield


def model(fields, params, image_shape, num_classes):
  return Model(
    network=fields,
    schedule={"kind": "linear_beta"},
    output="eps",
    precondition={"kind": "identity", "noise": "index"},
    image_shape=image_shape,
    num_classes=num_classes,
    params=params,
  )


def shapes_of_tensors(config):
  """Returns the names and shapes of the tensors that `write` gives."""
  fields, image_shape, num_classes = diffusers_unet_config.read_config(config)
  module = network_of(model(fields, {}, image_shape, num_classes)).module
  zeros = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, np.float32),
    shapes_of(module, image_shape),
  )
  _, tensors = diffusers_unet.write(
    model(fields, zeros, image_shape, num_classes)
  )
  return {name: tensor.shape for name, tensor in tensors.items()}


def tensors_of(config, seed=1):
  return MAKER["weights"](shapes_of_tensors(config), seed)


def answer(net, params, seed, noise=None):
  """Returns every second number of the output, like the stored outputs."""
  images, timesteps, labels = MAKER["inputs"](net.image_shape[-1], seed)
  noise = timesteps / 1000 if noise is None else noise
  label = jnp.asarray(labels) if net.num_classes else None
  t = jnp.asarray(noise, jnp.float32)
  output = jit(net.apply)(params, images, t, Condition(label=label))
  return np.asarray(output).ravel()[::2]


def close(actual, expected):
  """Asserts that errors are below 5e-5 of the spread; 1e-4 is promised."""
  assert np.std(expected) > 0.1
  np.testing.assert_allclose(
    actual, expected, rtol=0, atol=5e-5 * np.std(expected)
  )


# The first case of each variant always runs; the others are marked slow.
FAST = {variant: (variant, seed) for variant, seed in MAKER["CASES"]}.values()


@pytest.mark.parametrize(
  ("variant", "seed"),
  [
    case if case in FAST else pytest.param(*case, marks=pytest.mark.slow)
    for case in MAKER["CASES"]
  ],
)
def test_an_imported_network_gives_the_outputs_of_diffusers_and_returns(
  variant, seed
):
  config = MAKER["config"](variant, seed)
  expected = GOLDEN[f"{variant}_{seed}"]
  shapes = shapes_of_tensors(config)
  assert MAKER["fingerprint"](shapes) == expected["tensors"]
  tensors = MAKER["weights"](shapes, seed)
  ours = model(*diffusers_unet.read(config, tensors))
  close(answer(network_of(ours), ours.params, seed), expected["output"])
  written, back = diffusers_unet.write(ours)
  assert tensors.keys() == back.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(back[name], tensor)
  assert json.loads(json.dumps(written)).keys() >= config.keys()
  fields, params, *rest = diffusers_unet.read(written, back)
  assert (fields, *rest) == (ours.network, ours.image_shape, ours.num_classes)
  jax.tree.map(np.testing.assert_array_equal, params, ours.params)


@pytest.mark.torch
@pytest.mark.parametrize(("variant", "seed"), MAKER["CASES"][::3])
def test_an_imported_network_gives_the_outputs_of_installed_diffusers(
  variant, seed
):
  config = MAKER["config"](variant, seed)
  expected = MAKER["answer"](config, seed)
  ours = model(*diffusers_unet.read(config, tensors_of(config, seed)))
  close(answer(network_of(ours), ours.params, seed), expected["output"])


def drawn(draw):
  """Draws random fields of a U-Net that diffusers can represent."""
  style = draw(st.sampled_from(("film", "ddpm")))
  resampling = draw(st.sampled_from((None, "block", "conv")))
  heads = draw(st.sampled_from(({}, {"head_dim": 4}, {"head_dim": 2})))
  middles = ["attention", "blocks"] + ["bare_attention"] * (style == "film")
  return heads | {
    "kind": "unet",
    "channels": 8,
    "multipliers": draw(st.sampled_from(((1,), (1, 2)))),
    "num_blocks": draw(st.integers(1, 2)),
    "attention": draw(st.sampled_from(((), (8,)))),
    "style": style,
    "resampling": resampling,
    "padding": draw(st.sampled_from(("same", "both"))),
    "middle": draw(st.sampled_from(middles)),
    "groups": draw(st.sampled_from((1, 2, 4))),
    "epsilon": draw(st.sampled_from((1e-6, 1e-5))),
    "cos_first": draw(st.booleans()),
    "frequency_shift": draw(st.integers(0, 1)),
    "embed_dim": draw(st.sampled_from((None, 32, 6))),
  }


@given(st.data())
@settings(max_examples=8, deadline=None)
def test_a_written_network_is_read_as_the_same_network(data):
  fields = drawn(data.draw)
  image_shape, num_classes = (8, 12, 2), data.draw(st.sampled_from((0, 3)))
  ours = model(fields, {}, image_shape, num_classes)
  module = network_of(ours).module
  random = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: random.normal(size=leaf.shape).astype(np.float32),
    shapes_of(module, image_shape),
  )
  if num_classes:
    # The class table of diffusers has no bias, so this bias must be 0.
    params["embed"]["label"]["bias"][:] = 0
  written = diffusers_unet.write(dataclasses.replace(ours, params=params))
  back, tree, *rest = diffusers_unet.read(*written)
  assert rest == [image_shape, num_classes]
  jax.tree.map(np.testing.assert_array_equal, tree, params)
  del back["kind"]
  again = UNet(**back, out_channels=2, num_classes=num_classes)
  ignored = {
    # For these fields, None and the default value mean the same, so they are
    # not compared.
    "resampling": None,
    "embed_dim": None,
    "group_size": 2,
  } | ({} if "padding" in back else {"padding": "same"})
  assert again.clone(**ignored) == module.clone(**ignored)


@pytest.fixture(scope="module")
def config():
  return {
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
  }


@pytest.mark.torch
def test_omitted_config_fields_have_the_defaults_of_diffusers(config):
  from diffusers.models.unets import unet_2d

  theirs = dict(unet_2d.UNet2DModel(**config).config)
  ours = diffusers_unet_config.DEFAULTS | config
  for name, value in ours.items():
    value = list(value) if isinstance(value, tuple) else value
    given = theirs[name]
    assert value == (list(given) if isinstance(given, tuple) else given), name


def test_old_names_of_attention_tensors_are_read(config):
  tensors = tensors_of(config)
  old = {"to_q": "query", "to_k": "key", "to_v": "value"}
  old |= {"to_out.0": "proj_attn"}
  renamed = {}
  for name, tensor in tensors.items():
    for new, before in old.items():
      name = name.replace(f".{new}.", f".{before}.")
    renamed[name] = tensor
  assert len(renamed.keys() - tensors.keys()) == 2 * 4 * 4
  _, params, *_ = diffusers_unet.read(config, renamed)
  expected = diffusers_unet.read(config, tensors)[1]
  jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_the_noise_levels_of_a_student_become_a_learned_embedding(config):
  ours = model(*diffusers_unet.read(config, tensors_of(config)))
  # The levels become a learned embedding, so any precondition can be written.
  ours = dataclasses.replace(
    ours, precondition={"kind": "edm"}, params=dict(ours.params)
  )
  levels = np.array([-0.3, 0.2, 0.9], np.float32)
  written, tensors = diffusers_unet.write(ours, levels)
  assert written["time_embedding_type"] == "learned"
  assert written["num_train_timesteps"] == 3
  rows = tensors.pop("time_proj.weight")
  np.testing.assert_array_equal(
    rows, sinusoid(jnp.asarray(levels), 8, cos_first=True, shift=0)
  )
  for name, tensor in tensors_of(config).items():
    np.testing.assert_array_equal(tensors[name], tensor)


@pytest.mark.torch
def test_diffusers_loads_a_written_learned_embedding(config):
  import diffusers
  import torch

  ours = model(*diffusers_unet.read(config, tensors_of(config)))
  levels = np.array([0.1, 0.45, 0.9], np.float32)
  written, tensors = diffusers_unet.write(ours, levels)
  theirs = diffusers.UNet2DModel.from_config(written).eval()
  theirs.load_state_dict({n: torch.from_numpy(t) for n, t in tensors.items()})
  images, *_ = MAKER["inputs"](3, 1)
  with torch.no_grad():
    output = theirs(
      torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor([2, 0])
    ).sample
  expected = output.permute(0, 2, 3, 1).numpy().ravel()[::2]
  close(answer(network_of(ours), ours.params, 1, levels[[2, 0]]), expected)


def test_the_label_bias_is_added_to_every_row_of_the_class_table(config):
  config = config | {"num_class_embeds": 4}
  fields, params, *rest = diffusers_unet.read(config, tensors_of(config))
  label = params["embed"]["label"]
  table = label["kernel"].copy()
  label["bias"] = np.arange(32, dtype=np.float32)
  _, tensors = diffusers_unet.write(model(fields, params, *rest))
  np.testing.assert_array_equal(
    tensors["class_embedding.weight"], table + label["bias"][None]
  )


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"cross_attention_dim": 8}, "cross_attention_dim is no field of UNet2D"),
    ({"center_input_sample": True}, "center_input_sample of UNet2DModel is Tr"),
    ({"time_embedding_type": "fourier"}, "time_embedding_type of .* 'fourier'"),
    ({"time_embedding_type": "learned"}, "time_embedding_type of .* 'learned'"),
    ({"freq_shift": 2}, r"freq_shift of UNet2DModel is 2, .* one of \(0, 1\)"),
    ({"mid_block_type": None}, "mid_block_type of UNet2DModel is None"),
    ({"mid_block_scale_factor": 2}, "mid_block_scale_factor of UNet2DModel"),
    ({"downsample_padding": 2}, "downsample_padding of UNet2DModel is 2"),
    ({"downsample_type": "fir"}, "downsample_type of UNet2DModel is 'fir'"),
    ({"upsample_type": "fir"}, "upsample_type of UNet2DModel is 'fir'"),
    ({"act_fn": "gelu"}, "act_fn of UNet2DModel is 'gelu'"),
    ({"class_embed_type": "identity"}, "class_embed_type of UNet2DModel"),
    ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift of"),
    ({"block_out_channels": [8, 12]}, "block_out_channels .* multiples of the"),
    ({"sample_size": None}, "sample_size of UNet2DModel is None"),
    ({"sample_size": 7}, "sample_size .* is 7, .* pass sizes divisible by 2"),
    ({"norm_num_groups": 3}, "norm_num_groups of UNet2DModel is 3"),
    ({"norm_num_groups": None}, "norm_num_groups of UNet2DModel is None"),
    ({"attention_head_dim": 5}, r"attention_head_dim .* divisor of \[16, 16\]"),
    ({"attn_norm_num_groups": 2}, "attn_norm_num_groups of UNet2DModel is 2"),
    (
      {"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]},
      "down_block_types .* pass 2 of DownBlock2D, ResnetDownsampleBlock2D",
    ),
    ({"up_block_types": ["UpBlock2D"]}, "up_block_types .* pass 2 of UpBlock2"),
    (
      {"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]},
      "up_block_types .* pass attention at the levels of down_block_types",
    ),
    ({"upsample_type": "resnet"}, "up_block_types .* as upsample_type and"),
  ],
)
def test_unsupported_config_fields_are_refused_by_name(config, change, message):
  with pytest.raises(ValueError, match=message) as refusal:
    diffusers_unet.read(config | change, {})
  assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t: t | {"x.weight": t["conv_in.bias"]}, "tensor x.weight is none"),
    (
      lambda t: {n: a for n, a in t.items() if n != "conv_out.bias"},
      r"has no tensor conv_out\.bias, which",
    ),
    (
      lambda t: t | {"conv_in.weight": t["conv_in.weight"][:, :2]},
      r"conv_in\.weight has shape \(8, 2, 3, 3\), .* needs \(8, 3, 3, 3\)",
    ),
  ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(config, change, message):
  with pytest.raises(ValueError, match=message) as refusal:
    diffusers_unet.read(config, change(tensors_of(config)))
  assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"patch": 2}, "patch is 2, which UNet2DModel does not have"),
    ({"sinusoid_dim": 4}, "sinusoid_dim is 4, which UNet2DModel"),
    ({"multipliers": (2, 2)}, r"multipliers is \(2, 2\), but UNet2DModel begi"),
    ({"groups": 32}, r"groups is 32, of which .* have \[4, 8, 12, 16\]"),
    ({"middle": "bare_attention"}, "middle is bare_attention, which UNet2DMod"),
    (
      {"num_heads": 2, "attention": (8,), "head_dim": None},
      r"num_heads is 2 for attention of \[8, 16\]",
    ),
  ],
)
def test_networks_that_diffusers_cannot_represent_are_refused(
  config, fields, message
):
  given = model(*diffusers_unet.read(config, tensors_of(config)))
  network = given.network | fields
  if "groups" in fields:
    network.pop("group_size", None)
  changed = dataclasses.replace(given, network=network)
  module = network_of(changed).module
  params = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape), shapes_of(module, (8, 8, 3))
  )
  with pytest.raises(ValueError, match=message) as refusal:
    diffusers_unet.write(dataclasses.replace(changed, params=params))
  assert "\n" not in str(refusal.value)


def test_other_networks_and_other_noise_inputs_are_refused(config):
  given = model(*diffusers_unet.read(config, tensors_of(config)))
  angle = dataclasses.replace(given, precondition={"kind": "identity"})
  with pytest.raises(ValueError, match="pass the noise_levels of a student's"):
    diffusers_unet.write(angle)
  mlp = {"kind": "mlp", "width": 8, "depth": 1}
  with pytest.raises(ValueError, match="the network is a mlp; pass a unet"):
    diffusers_unet.write(dataclasses.replace(given, network=mlp))


def test_num_heads_is_written_as_head_dim_if_one_width_has_attention(config):
  given = model(*diffusers_unet.read(config, tensors_of(config)))
  network = {**given.network, "num_heads": 2}
  del network["head_dim"]
  written, _ = diffusers_unet.write(dataclasses.replace(given, network=network))
  assert written["attention_head_dim"] == 8
