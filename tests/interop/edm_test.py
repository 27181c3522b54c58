"""Tests imported EDM pickles against stored outputs of torch networks."""

import functools
import json
import pathlib
import pickle
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from diffdistill.arrays import Condition
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.precondition import EDMPrecondition
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import EDM
from diffdistill.interop import edm
from diffdistill.interop.model import network_of

HERE = pathlib.Path(__file__).parent
MAKER = runpy.run_path(str(HERE / "make_golden_edm.py"))
WRITER = runpy.run_path(str(HERE / "write_pickles.py"))
GOLDEN = json.loads(MAKER["GOLDEN"].read_text())
# The settings of a model of one level, for tests of other things than the
# architecture.
SMALL = {**MAKER["CASES"]["ncsnpp_5"][0], "channel_mult": [1]}
# Compiling tiny networks takes longer than running them, so optimise less.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def tree(tensors):
  """Converts {"a.b": tensor} to {"a": {"b": tensor}}."""
  nested = {}
  for name, value in tensors.items():
    *parents, last = name.split(".")
    place = nested
    for parent in parents:
      place = place.setdefault(parent, {})
    place[last] = value
  return nested


def module(class_name, nested, **fields):
  """Makes a module as EDM's `torch_utils.persistence` pickles it."""
  own = {k: v for k, v in nested.items() if not isinstance(v, dict)}
  buffers = ("freqs", "resample_filter")
  # "enc" and "dec" hold only modules, so torch pickles them as ModuleDicts.
  state = WRITER["module_state"](
    {k: WRITER["parameter"](v) for k, v in own.items() if k not in buffers},
    {k: WRITER["parameter"](v) for k, v in own.items() if k in buffers},
    {
      name: module("UNetBlock", child)
      if name not in ("enc", "dec")
      else module_dict(child)
      for name, child in nested.items()
      if isinstance(child, dict)
    },
  )
  return WRITER["persistent"](class_name, {**state, **fields})


def module_dict(nested):
  modules = {name: module("UNetBlock", child) for name, child in nested.items()}
  name = WRITER["Name"]("torch.nn.modules.container", "ModuleDict")
  return WRITER["New"](name, state=WRITER["module_state"]({}, {}, modules))


def pickled(settings, tensors, class_name="EDMPrecond", **fields):
  """Returns the bytes of a network snapshot, as EDM's training writes it."""
  outer = ("img_resolution", "img_channels", "label_dim", "sigma_data")
  given = {k: v for k, v in settings.items() if k not in outer}
  kind = given.pop("model_type")
  channels = settings["img_channels"]
  given |= {
    "img_resolution": settings["img_resolution"],
    "in_channels": channels,
    "out_channels": channels,
    "label_dim": settings["label_dim"],
  }
  state = WRITER["module_state"](
    {},
    {},
    {
      "model": module(
        kind,
        tree(tensors),
        # Use a numpy scalar here, because it is pickled differently from a
        # float.
        skip_scale=np.sqrt(0.5),
        _init_args=(),
        _init_kwargs=given,
      )
    },
  )
  state |= {name: settings[name] for name in outer}
  state |= {"sigma_min": 0, "sigma_max": float("inf"), "use_fp16": True}
  easy = WRITER["New"](WRITER["Name"]("dnnlib.util", "EasyDict"))
  loss = {"P_mean": -1.2, "P_std": 1.2}
  return WRITER["dumps"](
    {
      "ema": WRITER["persistent"](class_name, {**state, **fields}),
      "loss_fn": WRITER["persistent"]("EDMLoss", loss),
      "augment_pipe": None,
      "dataset_kwargs": easy,
    }
  )


@pytest.fixture
def saved(tmp_path):
  """Returns a function that writes bytes to a file and returns its path."""

  def save(data):
    path = epath.Path(tmp_path / "network-snapshot.pkl")
    path.write_bytes(data)
    return path

  return save


def case(name=None):
  settings, seed = MAKER["CASES"][name] if name else (SMALL, 5)
  return settings, MAKER["weights"](settings, seed), seed


def denoiser_of(model):
  fields = {k: v for k, v in model.schedule.items() if k != "kind"}
  return Denoiser(
    network=network_of(model),
    process=GaussianProcess(schedule=EDM(**fields)),
    output=model.output,
    precondition=EDMPrecondition(sigma_data=model.precondition["sigma_data"]),
    conditional=model.num_classes > 0,
    null_label=model.num_classes if model.null_label else None,
  )


# One case of each family always runs; the other cases are marked slow.
FAST = ("ddpmpp_1", "ncsnpp_4", "adm_7", "skip_10")


@pytest.mark.parametrize(
  "name",
  [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in GOLDEN
  ],
)
def test_an_imported_network_gives_the_outputs_of_torch(name, saved):
  settings, tensors, seed = case(name)
  model = edm.read(saved(pickled(settings, tensors)))
  x, sigma, label = MAKER["inputs"](settings, seed)
  denoiser = denoiser_of(model)
  t = denoiser.process.schedule.time(-2 * jnp.log(sigma))
  label = jnp.asarray(label) if model.num_classes else None
  if model.null_label:
    # EDM gives no label by a zero vector; we give the label num_classes.
    label = label.at[-1].set(model.num_classes)
  condition = Condition(label=label)
  d = jit(denoiser)(model.params, jnp.asarray(x), t, condition).x0
  flat, golden = np.asarray(d, np.float64).reshape(len(x), -1), GOLDEN[name]
  scale = np.abs(flat).max()
  # The tolerance is for float32 operations. It is ten times stricter than what
  # importers promise.
  np.testing.assert_allclose(flat[:, ::11], golden["some"], atol=1e-5 * scale)
  np.testing.assert_allclose((flat**2).sum(1), golden["squares"], rtol=5e-5)
  np.testing.assert_allclose(flat.sum(1), golden["sum"], atol=1e-3 * scale)


def test_read_returns_the_fields_of_the_model(saved):
  settings, tensors, _ = case()
  data = pickled(settings, tensors, sigma_min=0.01, sigma_max=50.0)
  model = edm.read(saved(data))
  assert model.network == {
    "kind": "song_unet",
    "channels": 8,
    "multipliers": (1,),
    "num_blocks": 1,
    "attention": (8,),
    "embed_dim": 16,
    "embedding": "fourier",
    "num_waves": 16,
    "encoder": "residual",
    "decoder": "standard",
    "taps": (1, 3, 3, 1),
  }
  assert model.schedule == {"kind": "edm", "sigma_min": 0.01, "sigma_max": 50.0}
  assert model.precondition == {"kind": "edm", "sigma_data": 0.7}
  assert model.image_shape == (8, 8, 1)
  assert (model.num_classes, model.null_label) == (3, True)
  assert model.origin == "EDM, network-snapshot.pkl"
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(model.params))


def test_noise_levels_default_to_those_of_the_paper(saved):
  settings, tensors, _ = case()
  model = edm.read(saved(pickled(settings, tensors)))
  assert model.schedule == {
    "kind": "edm",
    "sigma_min": 0.002,
    "sigma_max": 80.0,
  }


def test_a_model_without_label_dropout_has_no_null_label(saved):
  settings, tensors, _ = case()
  model = edm.read(saved(pickled({**settings, "label_dropout": 0}, tensors)))
  assert not model.null_label
  assert model.params["embed"]["label"]["kernel"].shape == (3, 16)


def test_omitted_settings_have_the_published_defaults(saved):
  settings = {**MAKER["CASES"]["ddpmpp_1"][0], "channel_mult": [1]}
  tensors = MAKER["weights"](settings, 1)
  # The pickle holds only these settings; the others have defaults.
  kept = ("channel_mult", "model_channels", "num_blocks", "attn_resolutions")
  outer = ("model_type", "img_resolution", "img_channels", "sigma_data")
  fewer = {k: settings[k] for k in kept + outer} | {"label_dim": 0}
  model = edm.read(saved(pickled(fewer, tensors)))
  full = edm.read(saved(pickled(settings, tensors)))
  assert model.network == full.network


def without(name):
  return lambda tensors: {k: v for k, v in tensors.items() if k != name}


def replaced(name, value):
  return lambda tensors: tensors | {name: value}


@pytest.mark.parametrize(
  ("change", "settings", "fields", "message"),
  [
    (dict, {}, {"class_name": "VPPrecond"}, "its ema is a VPPrecond; pass"),
    (dict, {"model_type": "VDM"}, {}, "its model is a VDM; pass a SongUNet or"),
    (dict, {"gain": 2}, {}, "has a setting 'gain', which its published"),
    (without("map_layer0.bias"), {}, {}, "has no tensor map_layer0.bias"),
    (without("map_noise.freqs"), {}, {}, "has no tensor map_noise.freqs"),
    (
      replaced("more.weight", np.ones(1, "f4")),
      {},
      {},
      "tensor more.weight is",
    ),
    (
      replaced("map_layer1.weight", np.ones((2, 16), "f4")),
      {},
      {},
      r"map_layer1.weight is \(2, 16\), which does not fit \(16, 16\)",
    ),
    (
      replaced("map_layer1.bias", np.full(16, np.nan, "f4")),
      {},
      {},
      "map_layer1.bias is not finite",
    ),
    (dict, {"num_blocks": 2}, {}, "has no tensor enc.8x8_block1"),
    (
      dict,
      {"num_blocks": 2**40},
      {},
      "num_blocks is 1099511627776, but the mo",
    ),
    (dict, {"embedding_type": "sine"}, {}, "embedding is 'sine'; pass one of"),
    (dict, {}, {"sigma_data": None}, "lacks a part or has it in another form"),
    (dict, {}, {"_modules": {}}, "lacks a part or has it in another form"),
  ],
)
def test_invalid_models_are_refused_in_one_line(
  saved, change, settings, fields, message
):
  known, tensors, _ = case()
  path = saved(pickled({**known, **settings}, change(tensors), **fields))
  with pytest.raises(ValueError, match=message) as refusal:
    edm.read(path)
  assert "\n" not in str(refusal.value)
  assert str(refusal.value).startswith(str(path))


def test_files_without_an_edm_network_are_refused(saved, tmp_path):
  for content, message in (
    ({"net": 3}, "its ema is a NoneType; pass a pickle whose ema is an EDMP"),
    ([1, 2], "its ema is a NoneType; pass a pickle"),
    ({"ema": {}}, "its ema is a dict; pass a pickle"),
  ):
    with pytest.raises(ValueError, match=message):
      edm.read(saved(pickle.dumps(content)))
  with pytest.raises(ValueError, match="there is no file"):
    edm.read(epath.Path(tmp_path / "none.pkl"))


def test_truncated_pickles_are_refused(saved):
  settings, tensors, _ = case()
  data = pickled(settings, tensors)
  for size in (0, 1, 100, len(data) // 2, len(data) - 1):
    with pytest.raises(ValueError, match=r"is damaged|has no end") as refusal:
      edm.read(saved(data[:size]))
    assert "\n" not in str(refusal.value)


def test_a_module_in_two_places_is_refused(saved):
  settings, tensors, _ = case()
  nested = tree(tensors)
  twice = module("UNetBlock", {})
  state = WRITER["module_state"]({}, {}, {"a": twice, "b": twice})
  fields = {"_init_args": (), "_init_kwargs": {}, **state}
  outer = WRITER["module_state"](
    {}, {}, {"model": module("SongUNet", nested, **fields)}
  )
  path = saved(pickled(settings, tensors, **outer))
  with pytest.raises(ValueError, match="is in two places"):
    edm.read(path)
