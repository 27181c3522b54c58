"""Tests the FID network against stored outputs of pytorch-fid."""

import hashlib
import importlib.util
import json
import pathlib
import runpy
import zlib

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffdistill.images import from_uint8
from diffdistill.interop import torch_inception
from diffdistill.interop.torch_inception import FILE, SHA256, load_inception
from diffdistill.networks.inception import inception

HERE = pathlib.Path(__file__).parent
MAKER = runpy.run_path(str(HERE / "make_golden_inception.py"))
GOLDEN = json.loads(MAKER["GOLDEN"].read_text())
EVERY = MAKER["EVERY"]


@pytest.fixture(scope="module")
def state():
  return MAKER["weights"]()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Returns a function that writes tensors and returns the path and hash."""

  def save(tensors):
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    save_file(tensors, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()

  return save


@pytest.fixture(scope="module")
def params(state, saved):
  path, sha256 = saved(state)
  return load_inception(path, sha256=sha256)


@pytest.fixture(scope="module")
def pixels():
  images = MAKER["images"]()
  # JPEG decoders differ, so check that the natural images have the pixels with
  # which the outputs were stored.
  assert [zlib.crc32(image.tobytes()) for image in images[2:]] == (
    GOLDEN["crops"]
  )
  return images


@pytest.fixture(scope="module")
def output(params, pixels):
  """Returns the features and logits of our network."""
  apply = jax.jit(
    inception(pixels.shape[1:]).apply,
    compiler_options={"xla_backend_optimization_level": 0},
  )
  with jax.default_matmul_precision("highest"):
    logits, features = apply(params, from_uint8(pixels))
  return np.asarray(features), np.asarray(logits)


def rms(values):
  return np.sqrt((np.asarray(values, np.float64) ** 2).mean(axis=1))


def assert_near(ours, theirs):
  """Asserts that errors are below 1e-4 of the number or of the image's rms."""
  theirs = np.asarray(theirs)
  sizes = np.maximum(np.abs(theirs), rms(theirs)[:, None])
  assert (np.abs(ours - theirs) / sizes).max() < 1e-4


def test_features_equal_those_of_pytorch_fid(output):
  features, _ = output
  assert_near(features[:, ::EVERY], GOLDEN["features"])
  np.testing.assert_allclose(rms(features), GOLDEN["features_rms"], rtol=1e-4)
  np.testing.assert_allclose(
    features.mean(axis=1), GOLDEN["features_mean"], rtol=1e-4
  )
  # The tolerance tells images apart: their features differ by more.
  gaps = rms(features - np.roll(features, 1, axis=0)) / rms(features)
  assert gaps.min() > 0.01


def test_logits_equal_those_of_pytorch_fid_without_bias(output, state):
  _, logits = output
  assert_near(logits[:, ::EVERY], GOLDEN["logits"])
  np.testing.assert_allclose(rms(logits), GOLDEN["logits_rms"], rtol=1e-4)
  # The bias is so large that adding it would fail the test above.
  assert state["fc.bias"].mean() > 0.4


def test_outputs_equal_those_of_the_installed_pytorch_fid(
  output, state, pixels
):
  for module in ("torch", "pytorch_fid"):
    pytest.importorskip(module)
  if importlib.util.find_spec("torchvision") is None:
    pytest.skip("pytorch-fid needs torchvision")
  features, logits = MAKER["answer"](state, pixels)
  assert_near(output[0], features)
  assert_near(output[1], logits)


def refused(path, message, **fields):
  with pytest.raises(ValueError, match=message) as refusal:
    load_inception(path, **fields)
  assert "\n" not in str(refusal.value)
  assert str(path) in str(refusal.value)


def test_only_the_published_file_is_read(tmp_path, monkeypatch):
  path = tmp_path / FILE
  refused(path, f"there is no file .*; pass the path of {FILE}")
  path.write_bytes(b"its name alone")
  # The file must be refused before it is read, so reading it raises an error.
  monkeypatch.setattr(torch_inception, "read_tensors", None)
  digest = hashlib.sha256(b"its name alone").hexdigest()
  refused(path, f"has SHA-256 {digest}, not {SHA256}: it is truncated, conver")
  assert SHA256.startswith(FILE.removesuffix(".pth").rsplit("-", 1)[1])


def test_truncated_weights_are_refused(state, saved, tmp_path):
  path, sha256 = saved({"fc.bias": state["fc.bias"]})
  truncated = tmp_path / path.name
  truncated.write_bytes(path.read_bytes()[:-1])
  refused(truncated, f"not {sha256}: it is truncated", sha256=sha256)


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    (
      "Mixed_7c.branch_pool.bn.running_var",
      None,
      "no tensor Mixed_7c.branch_p",
    ),
    ("fc.bias", None, "no fc.bias of 1008 numbers"),
    ("fc.bias", np.zeros(1000, np.float32), "no fc.bias of 1008 numbers"),
    (
      "fc.weight",
      np.zeros((1000, 2048), np.float32),
      r"needs \(1008, 2048\); pass",
    ),
    ("AuxLogits.fc.bias", np.zeros(3, np.float32), "AuxLogits.fc.bias is none"),
    ("Conv2d_1a_3x3.bn.bias", np.full(32, np.nan, np.float32), "is not finite"),
  ],
)
def test_tensors_of_another_network_are_refused(
  state, saved, name, value, message
):
  changed = {k: v for k, v in state.items() if k != name}
  if value is not None:
    changed[name] = value
  path, sha256 = saved(changed)
  refused(path, message, sha256=sha256)


@pytest.mark.torch
@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_gives_the_same_weights_as_safetensors(
  zipped, params, state, tmp_path
):
  import torch

  path = tmp_path / FILE
  # torch before 1.6 wrote files that are no zips, and this option does too.
  torch.save(
    {name: torch.from_numpy(value) for name, value in state.items()},
    path,
    _use_new_zipfile_serialization=zipped,
  )
  sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
  jax.tree.map(
    np.testing.assert_array_equal, load_inception(path, sha256=sha256), params
  )
