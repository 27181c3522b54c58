"""Tests imported ADM weights against stored outputs of a torch network."""

import functools
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffdistill.arrays import Condition
from diffdistill.interop import guided_diffusion
from diffdistill.interop.model import network_of

HERE = pathlib.Path(__file__).parent
MAKER = runpy.run_path(str(HERE / "make_golden_guided_diffusion.py"))
CASES = MAKER["CASES"]
GOLDEN = json.loads(MAKER["GOLDEN"].read_text())
# Compiling tiny networks takes longer than running them, so optimise less.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def tensors_of(name):
  seed = list(CASES).index(name)
  return MAKER["weights"](GOLDEN[name]["shapes"], seed)


@pytest.fixture
def saved(tmp_path):
  """Returns a function that writes tensors to a file and returns its path."""

  def save(tensors):
    path = tmp_path / "64x64_diffusion.safetensors"
    save_file(tensors, path)
    return path

  return save


@pytest.mark.parametrize("name", CASES)
def test_an_imported_network_gives_the_outputs_of_torch(name, saved):
  settings, seed = CASES[name], list(CASES).index(name)
  model = guided_diffusion.read(saved(tensors_of(name)), settings)
  images, timesteps, labels = MAKER["inputs"](settings["image_size"], seed)
  t = jnp.asarray(timesteps / 1000, jnp.float32)
  label = jnp.asarray(labels) if settings["class_cond"] else None
  assert model.num_classes == (7 if settings["class_cond"] else 0)
  apply = jit(network_of(model).apply)
  output = apply(model.params, images, t, Condition(label=label))
  actual, expected = np.ravel(output)[::5], np.array(GOLDEN[name]["output"])
  size = np.std(expected)
  assert size > 0.1
  # The tolerance is for float32 rounding of 1e-5; importers promise 1e-4.
  np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-5 * size)


def test_flags_of_released_models_give_their_network_fields():
  # The expected fields come from the flags that the README of guided-diffusion
  # gives for two released models.
  network = guided_diffusion._network(
    guided_diffusion.DEFAULTS
    | {
      "image_size": 64,
      "num_channels": 192,
      "num_head_channels": 64,
      "num_res_blocks": 3,
      "resblock_updown": True,
      "attention_resolutions": "32,16,8",
    }
  )
  assert network == {
    "kind": "unet",
    "channels": 192,
    "multipliers": (1, 2, 3, 4),
    "num_blocks": 3,
    "attention": (32, 16, 8),
    "head_dim": 64,
    "epsilon": 1e-5,
    "cos_first": True,
    "frequency_shift": 0,
  }
  network = guided_diffusion._network(
    guided_diffusion.DEFAULTS | {"image_size": 512, "num_channels": 256}
  )
  assert network["channels"] == 128
  assert network["multipliers"] == (1, 2, 2, 4, 4, 8, 8)
  assert (network["sinusoid_dim"], network["embed_dim"]) == (256, 1024)


NAME = "addition_conv_new_order"


@pytest.mark.parametrize(
  ("flags", "schedule", "output"),
  [
    (
      {},
      {
        "kind": "linear_beta",
        "num_steps": 1000,
        "beta_min": 1e-4,
        "beta_max": 0.02,
      },
      "eps",
    ),
    (
      {"diffusion_steps": 250, "rescale_timesteps": True},
      {
        "kind": "linear_beta",
        "num_steps": 250,
        "beta_min": 4e-4,
        "beta_max": 0.08,
      },
      "eps",
    ),
    (
      {
        "noise_schedule": "cosine",
        "diffusion_steps": 4000,
        "rescale_timesteps": True,
        "predict_xstart": True,
        "use_fp16": True,
        "dropout": 0.3,
      },
      {"kind": "cosine_beta", "num_steps": 4000},
      "x0",
    ),
  ],
)
def test_flags_give_schedule_and_output(flags, schedule, output, saved):
  path = saved(tensors_of(NAME))
  model = guided_diffusion.read(path, CASES[NAME] | flags)
  assert model.schedule == schedule
  assert model.output == output
  assert model.precondition == {
    "kind": "identity",
    "noise": "index",
    "num_steps": schedule["num_steps"],
  }
  assert model.image_shape == (8, 8, 3)
  assert "guided-diffusion, 64x64_diffusion" in model.origin


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ({"large_size": 256}, "large_size is no flag of guided-diffusion; pass so"),
    ({"image_size": "64"}, "image_size is '64'; pass a int"),
    ({"learn_sigma": 1}, "learn_sigma is 1; pass a bool"),
    ({"learn_sigma": True}, "learn_sigma is True, but .* 3 channels of 3"),
    ({"class_cond": True}, r"class_cond is True, .* no label_emb\.weight"),
    ({"channel_mult": ""}, "channel_mult is empty, which image_size 8 does"),
    ({"num_channels": 48}, r"num_channels is 48, .* of \[48, 48\]"),
    ({"channel_mult": "1,1.5"}, r"channel_mult is 1,1.5, whose .*\[64, 96\]"),
    ({"num_heads_upsample": 4}, "num_heads_upsample is 4, .* num_heads, 2"),
    ({"num_heads": 3}, "num_heads is 3, but attention has 64 channels"),
    ({"noise_schedule": "sqrt"}, "noise_schedule is 'sqrt'; pass one of linea"),
    ({"diffusion_steps": 250}, "rescale_timesteps is False, .*_steps is 250"),
    ({"num_res_blocks": 3}, r"has no tensor input_blocks\.3\.1\.norm"),
    ({"num_res_blocks": 1}, r"has no tensor input_blocks\.2\.0\.op\.b"),
    ({"attention_resolutions": "4"}, r"the tensor .*is none of this network"),
    ({"use_scale_shift_norm": True}, r"emb_layers\.1\.bias has shape \(64,\)"),
  ],
)
def test_invalid_flags_are_refused_by_name(flags, message, saved):
  path = saved(tensors_of(NAME))
  with pytest.raises(ValueError, match=message) as refusal:
    guided_diffusion.read(path, CASES[NAME] | flags)
  assert "\n" not in str(refusal.value)


def test_files_without_an_adm_network_are_refused(saved):
  path = saved({"conv1.weight": np.zeros((1, 1), np.float32)})
  with pytest.raises(ValueError, match="pass a state dict of guided-diffusion"):
    guided_diffusion.read(path, CASES[NAME])
