"""Tests that a model is saved to a folder and loaded from it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath

from diffdistill.interop import model_folder
from diffdistill.interop.model import Model, check, network_of
from diffdistill.system.files import read_json, write_json


@pytest.fixture(scope="module")
def model(with_weights):
  bare = Model(
    network={
      "kind": "unet",
      "channels": 8,
      "multipliers": (1, 2),
      "num_blocks": 1,
      "groups": 4,
    },
    schedule={"kind": "linear_beta", "num_steps": 1000},
    output="both",
    precondition={"kind": "identity", "noise": "index"},
    image_shape=(4, 4, 3),
    num_classes=2,
    null_label=True,
    origin="a test",
    license="Apache-2.0",
    sampler={"kind": "ddim", "clip": False},
    num_steps=4,
    params={},
  )
  return with_weights(bare)


@pytest.fixture
def saved(model, tmp_path_factory):
  folder = epath.Path(tmp_path_factory.mktemp("model"))
  model_folder.save(model, folder)
  return folder


def test_a_saved_model_is_loaded_unchanged(model, saved):
  again = model_folder.load(saved)
  jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
  for field in dataclasses.fields(Model):
    if field.name != "params":
      assert getattr(again, field.name) == getattr(model, field.name)
  assert model_folder.describe(saved).params == {}


def test_network_of_counts_the_null_label_as_a_class(model):
  network = network_of(model)
  assert network.num_classes == 3
  assert network.module.out_channels == 6


def test_nested_restores_the_tree_that_flat_flattens(model):
  tensors = model_folder.flat(model.params)
  assert tensors["down_0_block_0.conv1.kernel"].shape == (3, 3, 8, 8)
  again = model_folder.nested(tensors)
  jax.tree.map(np.testing.assert_array_equal, again, model.params)


def test_weights_that_do_not_fit_are_refused(model):
  tensors = model_folder.flat(model.params)
  missing = {k: v for k, v in tensors.items() if k != "conv_in.bias"}
  infinite = tensors | {"conv_in.bias": np.full(8, np.inf, np.float32)}
  wider = dataclasses.replace(model, network={**model.network, "groups": 2})
  for tree, match in (
    (missing, r"\['conv_in'\]\['bias'\] is None where \(8,\) is due"),
    (infinite, r"\['conv_in'\]\['bias'\] are not finite"),
  ):
    changed = dataclasses.replace(model, params=model_folder.nested(tree))
    with pytest.raises(ValueError, match=match):
      check(changed)
  assert check(wider) is wider  # The number of groups changes no shape.
  with pytest.raises(ValueError, match="the network is 'vae'"):
    network_of(dataclasses.replace(model, network={"kind": "vae"}))


def test_folders_that_hold_no_model_are_refused(saved, tmp_path):
  with pytest.raises(ValueError, match=r"it has no model\.json"):
    model_folder.load(epath.Path(tmp_path))
  description = saved / "model.json"
  fields = read_json(description)
  for change in (
    {"format": "other"},
    {"nothing": 1},
    {"network": []},
    {"network": {}},
    {"network": {**fields["network"], "channels": "8"}},
    {"network": {**fields["network"], "unknown": 8}},
    {"num_classes": -1},
    {"image_shape": "8"},
  ):
    write_json(description, fields | change)
    with pytest.raises(ValueError, match="cannot be read") as refusal:
      model_folder.describe(saved)
    assert "\n" not in str(refusal.value)
  for text in ("", "[1]", "[" * 100_000, json.dumps(fields)):
    description.write_text(text)
    with pytest.raises(ValueError, match=r"is damaged.*import the model again"):
      model_folder.describe(saved)
  write_json(description, fields)
  weights = saved / "model.safetensors"
  whole = weights.read_bytes()
  weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
  with pytest.raises(ValueError, match=r"other weights than model\.json was"):
    model_folder.load(saved)
  weights.write_bytes(whole[:-7])
  with pytest.raises(ValueError, match="damaged"):
    model_folder.load(saved)
