"""Tests that exported samplers run in a process that has no diffdistill."""

import ast
import functools
import json
import os
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.arrays import Condition
from diffdistill.data.label_order import labels_of
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import Cosine
from diffdistill.evaluation.generator import Generator
from diffdistill.interop import stablehlo
from diffdistill.networks import NETWORKS
from diffdistill.networks.network import LinenNetwork
from diffdistill.sampling import SAMPLERS
from tests.children import Children

PROCESS = GaussianProcess(schedule=Cosine())
NUM_STEPS, SEED = 3, 7
COUNTS = (3, 0, 1)  # the number of images of each class in the data
DIT = {"kind": "dit", "width": 8, "depth": 1, "num_heads": 2}
UNET = {
  "kind": "unet",
  "channels": 4,
  "multipliers": (1,),
  "num_blocks": 1,
}
CASES = {
  # Each case is (network, channels, number of classes, sampler, guidance).
  "unconditional": (UNET, 1, 0, {"kind": "ddim"}, None),
  "conditional": (DIT, 3, 3, {"kind": "ddim"}, None),
  "stochastic": (
    DIT,
    4,
    3,
    {"kind": "ancestral", "noise": 0.5},
    Guidance(weight=1.5),
  ),
}
# The samplers that run, as (name of the case, number of images).
RUNS = (
  ("unconditional", 2),
  ("unconditional", 5),
  ("conditional", 2),
  ("conditional", 5),
  ("stochastic", 2),
)
# This program runs exported scripts, but keeps them from importing diffdistill
# and flax. Python's option -P also hides modules beside a script.
BLOCKED = """
import json, os, runpy, sys

class Blocked:
  def find_spec(self, name, *_):
    if name.partition(".")[0] in ("diffdistill", "flax", "etils", "PIL"):
      raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocked())
try:
  import diffdistill
  raise SystemExit("diffdistill is not blocked")
except ImportError:
  pass
for folder, count, seed, out in json.loads(sys.argv[1]):
  os.makedirs(out)
  os.chdir(out)
  script = folder + "/sample.py"
  sys.argv = [script, str(count), str(seed)]
  runpy.run_path(script, run_name="__main__")
"""


def parts(network, channels, classes, sampler, guidance):
  """Returns the sampler's function, its weights, (h, w, c) and the classes."""
  fields = dict(network)
  known = classes + (guidance is not None)
  image_shape = (4, 4, channels)
  module = NETWORKS[fields.pop("kind")](
    **fields, out_channels=channels, num_classes=known
  )
  denoiser = Denoiser(
    network=LinenNetwork(
      module=module, image_shape=image_shape, num_classes=known
    ),
    process=PROCESS,
    output="v",
    conditional=classes > 0,
    null_label=classes if guidance else None,
  )
  fields = dict(sampler)
  sampler = SAMPLERS[fields.pop("kind")](process=PROCESS, **fields)

  def sample(params, noise, label, key, num_steps):
    x = sampler.start(noise, num_steps)
    model = denoiser.bind(params, Condition(label=label), guidance)
    return sampler(model, x, key, num_steps)

  shapes = jax.eval_shape(denoiser.network.init, jax.random.key(0))
  random = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: jnp.array(0.3 * random.normal(size=leaf.shape), jnp.float32),
    shapes,
  )
  return sample, params, image_shape, classes


@functools.cache
def made(name):
  """Returns the parts of a case, and its exported sampler as bytes."""
  sample, params, image_shape, classes = parts(*CASES[name])
  sampler = stablehlo.export_sampler(
    sample, params, image_shape, classes, NUM_STEPS
  )
  return sample, params, image_shape, classes, sampler


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
  """Returns a folder of images that a process without diffdistill made."""
  root = tmp_path_factory.mktemp("exported")
  for name in CASES:
    *_, image_shape, classes, sampler = made(name)
    stablehlo.write_sampler(
      root / name, sampler, image_shape, COUNTS[:classes], NUM_STEPS
    )
  runs = [
    (str(root / name), count, SEED, str(root / name / str(count)))
    for name, count in RUNS
  ]
  environment = {
    k: v for k, v in os.environ.items() if not k.startswith(("JAX", "XLA"))
  }
  # The process uses one CPU device and little optimisation, to compile fast.
  environment["JAX_PLATFORMS"] = "cpu"
  environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
  with Children() as children:
    done = children.run(
      *(sys.executable, "-P", "-c", BLOCKED, json.dumps(runs)),
      cwd=root,
      env=environment,
    )
  assert done.returncode == 0, done.stderr
  return root


def generator_of(name, count, mesh):
  sample, _, image_shape, classes, _ = made(name)
  return Generator(
    sample=sample,
    image_shape=image_shape,
    num_classes=classes,
    label_counts=lambda: COUNTS,
    mesh=mesh,
    batch_size=count,
  )


@pytest.mark.parametrize(("name", "count"), RUNS)
def test_an_exported_sampler_gives_our_images_without_diffdistill(
  name, count, elsewhere, mesh_of
):
  _, params, image_shape, *_ = made(name)
  generator = generator_of(name, count, mesh_of(1))
  (expected,) = generator.batches(params, SEED, count, NUM_STEPS)
  images = np.load(elsewhere / name / str(count) / "images.npy")
  assert images.shape == (count, *image_shape)
  assert images.dtype == np.float32
  assert np.std(images) > 0.1
  np.testing.assert_allclose(images, expected, atol=1e-5)


@pytest.mark.parametrize(
  "counts", [COUNTS, (1, 1, 1), (0, 0, 7), (5, 2, 1, 0, 13, 4), (6, 4)]
)
def test_the_script_draws_the_same_labels_as_a_run(counts):
  functions = [
    node
    for node in ast.parse(stablehlo.SCRIPT).body
    if isinstance(node, ast.FunctionDef)
  ]
  script = {"np": np}
  exec(compile(ast.Module(functions, []), "sample.py", "exec"), script)
  number = 2 * sum(counts) + 1
  np.testing.assert_array_equal(
    script["labels_of"](counts, number), labels_of(counts, 0, number)
  )


def test_one_exported_file_serves_all_platforms_batch_sizes_and_seeds():
  _, _, image_shape, _, sampler = made("stochastic")
  model = jax.export.deserialize(bytearray(sampler))
  assert model.platforms == ("cpu", "cuda", "tpu")
  assert model.nr_devices == 1
  noise, label, seed = model.in_avals
  assert (str(noise), str(label)) == ("float32[b,4,4,4]", "int32[b]")
  assert (seed.shape, seed.dtype) == ((), np.uint32)
  x, call = np.ones((2, *image_shape), np.float32), jax.jit(model.call)
  label = np.array([1, 2], np.int32)
  one, same, other = (call(x, label, np.uint32(i)) for i in (1, 1, 2))
  np.testing.assert_array_equal(one, same)
  assert np.max(np.abs(one - other)) > 0.1


def test_weights_on_several_devices_are_exported_for_one(elsewhere, mesh_of):
  sample, params, image_shape, classes, _ = made("conditional")
  mesh = mesh_of(8)
  split = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
  sampler = stablehlo.export_sampler(
    sample, split, image_shape, classes, NUM_STEPS, ("cpu",)
  )
  generator = generator_of("conditional", 2, mesh_of(1))
  images = jax.export.deserialize(bytearray(sampler)).call(
    jax.device_get(generator.noise(SEED, 0)),
    jax.device_get(generator.labels(0)),
    np.uint32(SEED),
  )
  expected = np.load(elsewhere / "conditional" / "2" / "images.npy")
  np.testing.assert_allclose(images, expected, atol=1e-5)


def test_the_script_is_short_and_imports_jax_and_numpy_alone():
  lines = stablehlo.SCRIPT.splitlines()
  imported = {
    re.split(r"[ .]", line)[1]
    for line in lines
    if line.startswith(("import", "from"))
  }
  assert imported - set(sys.stdlib_module_names) == {"jax", "numpy"}
  assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"num_steps": 0}, "num_steps is 0; pass 1 or more"),
    ({"platforms": ("cpu", "gpu")}, "the platform is 'gpu'; pass some of cpu"),
  ],
)
def test_zero_steps_and_unknown_platforms_are_refused(fields, message):
  sample, params, image_shape, classes, _ = made("conditional")
  with pytest.raises(ValueError, match=message):
    stablehlo.export_sampler(
      sample,
      params,
      image_shape,
      classes,
      **{"num_steps": NUM_STEPS, **fields},
    )


def test_weights_too_large_for_the_file_are_refused():
  sample, _, image_shape, classes, _ = made("conditional")
  params = {"kernel": np.broadcast_to(np.float32(0), (2**15, 2**14))}
  message = "the weights have 2.1 GB, and one StableHLO file holds 2; export"
  with pytest.raises(ValueError, match=message):
    stablehlo.export_sampler(sample, params, image_shape, classes, NUM_STEPS)


def test_an_export_without_flatbuffers_tells_how_to_install_them(monkeypatch):
  sample, params, image_shape, classes, _ = made("conditional")
  monkeypatch.setitem(sys.modules, "jax._src.export.serialization", None)
  with pytest.raises(ValueError, match="pip install flatbuffers"):
    stablehlo.export_sampler(
      sample, params, image_shape, classes, NUM_STEPS, ("cpu",)
    )
