"""Tests imported ResNet weights against stored outputs of torch."""

import functools
import json
import pathlib
import pickle
import runpy

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffdistill.interop.torch_resnet import load_resnet
from diffdistill.networks.classifier import LinenClassifier, ResNet
from diffdistill.networks.resnet import TorchResNet

HERE = pathlib.Path(__file__).parent
MAKER = runpy.run_path(str(HERE / "make_golden_resnet.py"))
WRITER = runpy.run_path(str(HERE / "write_pickles.py"))
GOLDEN = json.loads(MAKER["GOLDEN"].read_text())
# Compiling tiny networks takes longer than running them, so optimise less.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def classifier(depth=18, stem="cifar", size=16, channels=3, num_classes=5):
  module = TorchResNet(
    depth=depth, stem=stem, width=MAKER["WIDTH"], num_classes=num_classes
  )
  return LinenClassifier(module=module, image_shape=(size, size, channels))


@pytest.fixture(scope="module")
def state():
  return MAKER["weights"](18, "cifar", seed=1)


@pytest.fixture
def saved(tmp_path):
  """Returns a function that writes tensors to a file and returns its path."""

  def save(tensors):
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path)
    return path

  return save


@pytest.mark.parametrize("name", GOLDEN)
def test_an_imported_network_gives_the_outputs_of_torch(name, saved):
  case = MAKER["CASES"][name]
  depth, stem, size, seed = case.values()
  net = classifier(depth, stem, size)
  path = saved(MAKER["weights"](depth, stem, seed))
  x = MAKER["images"](size, seed)
  logits, features = jit(net.apply)(load_resnet(path, net), x)
  expected = GOLDEN[name]
  # The tolerance is for up to 53 layers in float32; stored outputs are
  # float64.
  near = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
  near(logits, expected["logits"])
  near(features[:, :4], expected["features"])
  near(features.sum(1), expected["features_sum"])


def test_imported_weights_are_float32_with_the_shapes_of_init(state, saved):
  net = classifier()
  # The file is float16, as files of weights often are.
  params = load_resnet(
    saved({k: v.astype(np.float16) for k, v in state.items()}), net
  )
  shapes = jax.eval_shape(net.init, jax.random.key(0))
  assert jax.tree.structure(params) == jax.tree.structure(shapes)
  for ours, theirs in zip(
    jax.tree.leaves(params), jax.tree.leaves(shapes), strict=True
  ):
    assert ours.shape == theirs.shape
    assert ours.dtype == np.float32


def renamed_like_cifar_repositories(state):
  """Returns a state dict with names of CIFAR repositories and DataParallel."""
  return {
    "module."
    + name.replace("downsample", "shortcut").replace("fc.", "linear."): value
    for name, value in state.items()
  }


def test_tensor_names_of_cifar_repositories_are_read(state, saved):
  net = classifier()
  expected = load_resnet(saved(state), net)
  renamed = renamed_like_cifar_repositories(state)
  assert not set(renamed) & set(state)
  params = load_resnet(saved(renamed), net)
  jax.tree.map(np.testing.assert_array_equal, params, expected)


def without(name):
  return lambda state: {k: v for k, v in state.items() if k != name}


def replaced(name, value):
  return lambda state: state | {name: value}


@pytest.mark.parametrize(
  ("change", "fields", "message"),
  [
    (without("layer3.1.bn2.running_var"), {}, r"no tensor layer3\.1\.bn2\.run"),
    (without("layer2.0.downsample.1.bias"), {}, r"no tensor layer2\.0\.downsa"),
    (replaced("aux.weight", np.ones(1)), {}, r"the tensor aux\.weight is none"),
    (
      replaced("bn1.weight", np.ones(3)),
      {},
      r"bn1\.weight has shape \(3,\), b",
    ),
    (
      replaced("fc.bias", np.full(5, np.nan, np.float32)),
      {},
      r"fc\.bias is not finite",
    ),
    (replaced("linear.bias", np.ones(5)), {}, r"fc\.bias under two names"),
    (dict, {"num_classes": 10}, r"fc\.weight has shape \(5, 128\), but"),
    (dict, {"channels": 1}, r"conv1\.weight has shape \(16, 3, 3, 3\), but"),
    (dict, {"stem": "imagenet"}, r"depth 18 needs \(16, 3, 7, 7\)"),
    (dict, {"depth": 34}, r"no tensor layer1\.2\.bn1\.weight"),
    (dict, {"depth": 50}, r"\(5, 128\), but .* needs \(5, 512\)"),
  ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
  state, saved, change, fields, message
):
  path = saved(change(state))
  with pytest.raises(ValueError, match=message) as refusal:
    load_resnet(path, classifier(**fields))
  assert "\n" not in str(refusal.value)
  assert str(path) in str(refusal.value)


def test_weights_of_a_deeper_network_are_refused(saved, monkeypatch):
  monkeypatch.setitem(MAKER["BLOCKS"], 34, (3, 4, 6, 3))
  path = saved(MAKER["weights"](34, "cifar", seed=1))
  with pytest.raises(ValueError, match=r"layer1\.2\.bn1\.bias is none of a"):
    load_resnet(path, classifier())


def refused(path, message, net=None):
  with pytest.raises(ValueError, match=message) as refusal:
    load_resnet(path, net or classifier())
  assert "\n" not in str(refusal.value)


def test_missing_damaged_and_other_files_are_refused(tmp_path):
  refused(tmp_path / "none.safetensors", "there is no file")
  refused(tmp_path / "weights.pkl", "that ends in .safetensors, .pt,")
  damaged = tmp_path / "damaged.safetensors"
  damaged.write_bytes(b"\x08" + bytes(30))
  refused(damaged, "is damaged or no safetensors file")
  # numpy has no bfloat16, so this file is written by hand.
  header = b'{"x":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
  damaged.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
  refused(damaged, "has tensors of type BF16; save them as float32")
  module = ResNet(channels=4, multipliers=(1,), num_blocks=1, num_classes=5)
  refused(
    damaged,
    "the classifier is a ResNet; pass kind=torch_resnet in the stage",
    LinenClassifier(module=module, image_shape=(16, 16, 3)),
  )


class Hostile:
  """An object that makes the file `path` when pickle loads it."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


@pytest.fixture
def hostile(tmp_path):
  """Returns a hostile file, and the path that pickle would make."""
  path, trace = tmp_path / "hostile.pth", tmp_path / "trace"
  path.write_bytes(pickle.dumps({"fc.weight": Hostile(trace)}))
  pickle.loads(path.read_bytes())
  assert trace.exists()
  trace.unlink()
  return path, trace


def test_a_hostile_pickle_is_refused_and_does_not_run(hostile, tmp_path):
  path, trace = hostile
  refused(path, "names 'pathlib.Path.touch', and only arrays")
  assert not trace.exists()
  empty = tmp_path / "empty.pt"
  empty.touch()
  refused(empty, "is damaged or no pickle")


@pytest.mark.torch
def test_a_hostile_torch_file_is_refused_and_does_not_run(hostile):
  import torch

  path, trace = hostile
  torch.save({"fc.weight": Hostile(trace)}, path)
  refused(path, "names ")
  assert not trace.exists()


@pytest.mark.parametrize("wrapper", [None, "state_dict", "net"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_torch_files_give_the_same_weights_as_safetensors(
  wrapper, dtype, state, saved, tmp_path
):
  net, path = classifier(), tmp_path / "weights.pth"
  state = {name: value.astype(dtype) for name, value in state.items()}
  counters = {k for k in state if k.endswith("num_batches_tracked")}
  tensors = {
    # In a state dict, counters are int64 and other tensors are floats.
    k: WRITER["parameter"](v.astype(np.int64) if k in counters else v)
    for k, v in state.items()
  }
  content = {wrapper: tensors, "epoch": 3} if wrapper else tensors
  path.write_bytes(WRITER["dumps"](content))
  jax.tree.map(
    np.testing.assert_array_equal,
    load_resnet(path, net),
    load_resnet(saved(state), net),
  )


@pytest.mark.torch
def test_files_of_the_installed_torch_give_the_same_weights(
  state, saved, tmp_path
):
  import torch

  net, path = classifier(), tmp_path / "weights.pth"
  torch.save({k: torch.from_numpy(v) for k, v in state.items()}, path)
  jax.tree.map(
    np.testing.assert_array_equal,
    load_resnet(path, net),
    load_resnet(saved(state), net),
  )
