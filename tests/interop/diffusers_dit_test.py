"""Compares imported transformers with stored outputs of diffusers."""

import dataclasses
import functools
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.arrays import Condition
from diffdistill.interop.diffusers_dit import read, write
from diffdistill.interop.model import Model, check, network_of

HERE = pathlib.Path(__file__).parent
MAKER = runpy.run_path(str(HERE / "make_golden_diffusers_dit.py"))
GOLDEN = json.loads(MAKER["GOLDEN"].read_text())
CASES, CONFIG = MAKER["CASES"], MAKER["CONFIG"]
# Our network reads the timestep of diffusers divided by 1000.
TIME = jnp.array(MAKER["TIMESTEPS"]) / 1000


@pytest.fixture(scope="module")
def state():
  """Returns a function that gives a copy of a case's tensors."""
  made = functools.cache(lambda name: MAKER["weights"](CASES[name]))
  return lambda name="published": dict(made(name))


def model_of(config, tensors):
  network, params, image_shape, num_classes, null_label = read(config, tensors)
  return check(
    Model(
      network=network,
      schedule={"kind": "linear_beta"},
      output="eps",
      precondition={"kind": "identity", "noise": "index"},
      image_shape=image_shape,
      params=params,
      num_classes=num_classes,
      null_label=null_label,
    )
  )


def answer(model, config):
  images, label = MAKER["inputs"](config)
  apply = jax.jit(network_of(model).apply)
  condition = Condition(label=jnp.asarray(label))
  return apply(model.params, images, TIME, condition)


def near(actual, expected, tolerance):
  """Asserts that errors are below tolerance times the largest value."""
  expected = np.asarray(expected)
  error = np.max(np.abs(actual - expected)) / np.max(np.abs(expected))
  assert error < tolerance, error


@pytest.mark.parametrize("name", CASES)
def test_an_imported_network_gives_the_outputs_of_diffusers(name, state):
  model = model_of(CASES[name], state(name))
  assert all(
    leaf.dtype == np.float32 and leaf.flags.c_contiguous
    for leaf in jax.tree.leaves(model.params)
  )
  # The tolerance is for our float32 operations; the stored outputs are
  # float64.
  near(answer(model, CASES[name]), GOLDEN[name], 5e-5)


def test_read_returns_network_fields_shape_and_classes(state):
  network, _, *rest = read(CONFIG, state())
  assert network == {
    "kind": "dit",
    "width": 16,
    "depth": 3,
    "num_heads": 2,
    "patch": 2,
  }
  assert rest == [(8, 8, 4), 5, True]


def test_reading_and_writing_undo_each_other(state):
  model = model_of(CASES["one_head"], state("one_head"))
  config, tensors = write(model)
  # `write` replaces norm_eps by 1e-6, the value in the released DiT code.
  assert config == CASES["one_head"] | {"norm_eps": 1e-6}
  expected = state("one_head")
  assert tensors.keys() == expected.keys()
  for name, tensor in tensors.items():
    assert tensor.flags.c_contiguous
    np.testing.assert_array_equal(tensor, expected[name], err_msg=name)
  again = model_of(config, tensors)
  assert again.network == model.network
  jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


@pytest.mark.parametrize("name", ["published", "no_attention_bias"])
def test_writing_fills_in_omitted_biases_and_output_channels(name, state):
  model = model_of(CASES[name], state(name))
  config, tensors = write(model)
  assert config["out_channels"] == config["in_channels"]
  assert config["attention_bias"]
  again = model_of(config, tensors)
  assert again.network == model.network
  jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def trained_here(state):
  """Returns a model whose label embedding has a bias, as our training gives."""
  model = model_of(CONFIG, state())
  params = jax.tree.map(jnp.asarray, model.params)
  label = params["embed"]["label"]
  label["bias"] = jnp.linspace(-1.0, 1.0, label["bias"].size)
  return dataclasses.replace(model, params=params)


def test_the_label_bias_is_added_to_the_rows_of_the_class_table(state):
  model = trained_here(state)
  again = model_of(*write(model))
  assert not np.any(again.params["embed"]["label"]["bias"])
  near(answer(again, CONFIG), answer(model, CONFIG), 1e-5)


@pytest.mark.torch
def test_diffusers_loads_written_weights_and_gives_our_outputs(state):
  model = trained_here(state)
  config, tensors = write(model)
  near(answer(model, CONFIG), MAKER["answer"](config, tensors), 1e-4)


def test_configs_of_older_versions_and_float16_weights_are_read(state):
  old = {k: v for k, v in CONFIG.items() if k not in ("norm_eps", "dropout")}
  old |= {
    "_class_name": "Transformer2DModel",
    "_diffusers_version": "0.12.0.dev0",
    "cross_attention_dim": None,
    "only_cross_attention": False,
    "num_vector_embeds": None,
  }
  expected = read(CONFIG, state())
  half = {k: v.astype(np.float16) for k, v in state().items()}
  network, params, *rest = read(old, half)
  assert (network, rest) == (expected[0], list(expected[2:]))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4),
    params,
    expected[1],
  )


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("activation_fn", "geglu", "'geglu', which our DiT has not; pass a folder"),
    ("norm_type", "ada_norm", "where it is 'ada_norm_zero'"),
    ("norm_elementwise_affine", True, "where it is False"),
    ("norm_eps", 1e-3, "where it is 1e-05 or 1e-06"),
    ("dropout", 0.1, "where it is 0"),
    ("out_channels", 5, "where it is 4 or 8"),
    ("sample_size", 9, "where it is a multiple of its patch_size, 2"),
    ("attention_head_dim", 7, "all heads have a multiple of 4"),
    ("num_embeds_ada_norm", None, "where it is a whole number above 0"),
    ("num_layers", 0, "where it is a whole number above 0"),
    ("cross_attention_dim", 8, "which is no field of a DiTTransformer2DModel"),
  ],
)
def test_unsupported_config_fields_are_refused_by_name(
  field, value, message, state
):
  with pytest.raises(ValueError, match=message) as refusal:
    read(CONFIG | {field: value}, state())
  assert str(refusal.value).startswith(f"the transformer's {field} is ")
  assert "\n" not in str(refusal.value)


EMBED = "transformer_blocks.2.norm1.emb"


@pytest.mark.parametrize(
  ("name", "tensor", "message"),
  [
    ("proj_out_1.bias", None, "the transformer has no tensor proj_out_1.bias"),
    (
      "transformer_blocks.1.attn1.to_k.bias",
      np.ones(3, np.float32),
      r"to_k\.bias has shape \(3,\), but .* of this config needs \(16,\)",
    ),
    ("caption.weight", np.ones(3), "the tensor caption.weight is none of a"),
    (
      f"{EMBED}.timestep_embedder.linear_2.bias",
      np.ones(16, np.float32),
      rf"{EMBED} is not that of block 0, and our DiT has one for all",
    ),
    (
      f"{EMBED}.class_embedder.embedding_table.weight",
      np.ones((6, 16), np.float32),
      rf"{EMBED} is not that of block 0, and our DiT has one for all",
    ),
  ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
  name, tensor, message, state
):
  tensors = state() | {name: tensor}
  if tensor is None:
    del tensors[name]
  with pytest.raises(ValueError, match=message) as refusal:
    read(CONFIG, tensors)
  assert "\n" not in str(refusal.value)


def test_reading_does_not_change_its_argument(state):
  tensors = state()
  read(CONFIG, tensors)
  assert tensors.keys() == state().keys()


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"image_shape": (8, 4, 4)}, r"image_shape is \(8, 4, 4\), and diffusers'"),
    ({"output": "both"}, "output is 'both'"),
    ({"num_classes": 0, "null_label": False}, "num_classes is 0"),
    ({"null_label": False}, "null_label is False"),
    (
      {"network": {"kind": "mlp", "width": 8, "depth": 1}},
      "network is a MLP, and diffusers' DiT is a transformer of square images",
    ),
  ],
)
def test_models_that_diffusers_cannot_represent_are_refused(
  fields, message, state
):
  model = dataclasses.replace(model_of(CONFIG, state()), **fields)
  with pytest.raises(ValueError, match=message) as refusal:
    write(model)
  assert "\n" not in str(refusal.value)
