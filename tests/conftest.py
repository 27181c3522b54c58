"""Settings and fixtures of all tests: eight CPU devices, fast compilation."""

import contextlib
import copy
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import warnings

# Tests spend more time on compiling than on running, so code with little
# optimisation is fastest. `make test` passes level 0, which rounds less exactly
# than the slow tests of meshes need. The emitters of fusions take two thirds of
# the time to compile a small U-Net; jaxlib 0.12 refuses their flag.
os.environ["XLA_FLAGS"] = " ".join(
  [os.environ.get("XLA_FLAGS", "--xla_backend_optimization_level=1")]
  + ["--xla_cpu_use_fusion_emitters=false"]
  * importlib.metadata.version("jaxlib").startswith("0.10.")
)

# Commands that tests start as processes keep their files here, not in the home
# folder of the user.
os.environ["XDG_CACHE_HOME"] = os.path.abspath(".cache/commands")

import hypothesis
import jax
import numpy as np
import pytest
from absl import flags
from jax.sharding import AxisType, Mesh

from tests.children import Children, hear_all_signals

hear_all_signals()
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# The path is whole, because a test may change the current folder.
jax.config.update("jax_compilation_cache_dir", os.path.abspath(".cache/jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# A slow example of hypothesis is no failure, because the machine may be busy.
hypothesis.settings.register_profile(
  "busy",
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("busy")


# A pattern for the lines that a run prints about its stages, rounds and shards.
PROGRESS = (
  r"\w+: .* (parameters in the|pairs and) .*"
  r"|[\w/]+ +\d+/\d+ .* images/s .*"
  r"|[\w/]+: goes on from update \d+"
  r"|shard \d+ is made: .*"
  r"|cadence\.\w+ is \d+, but no round has more than .*"
  r"|finished already: .*|.* holds .*; next: .*"
  r"|data on .*"
  r"|\w+: does not train on .*"
  r"|waits up to .* s: .* is held by process .*"
)


def pytest_runtest_setup(item):
  needed = item.get_closest_marker("torch")
  if needed and importlib.util.find_spec("diffusers") is None:
    pytest.skip("torch and diffusers are not here: make check-diffusers")


@pytest.fixture
def children():
  """Starts processes that are killed when the test ends, even if it fails."""
  with Children() as started:
    yield started


@contextlib.contextmanager
def mounted(place, options):
  """Mounts a disk in memory, with these options."""
  place.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
  done = subprocess.run(mount, capture_output=True, text=True, check=False)
  if done.returncode:
    pytest.skip(f"a disk cannot be mounted here: {done.stderr.strip()}")
  try:
    yield place
  finally:
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def small_disk(tmp_path):
  """Mounts a disk of 256 kB."""
  with mounted(tmp_path / "small_disk", "size=256k") as place:
    yield place


@pytest.fixture
def read_only_disk(tmp_path):
  """Mounts an empty disk that cannot be written."""
  with mounted(tmp_path / "read_only_disk", "size=256k,ro") as place:
    yield place


@pytest.fixture(scope="session")
def mesh_of():
  """Returns a function that makes a mesh of the first data * fsdp devices."""

  def make(data, fsdp=1):
    devices = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

  return make


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory):
  """Makes a config with a teacher and students of 4, 2 and 1 steps.

  Each of them has 18 updates.
  """
  random = np.random.default_rng(0)
  path = tmp_path_factory.mktemp("data") / "tiny.npz"
  np.savez(
    path,
    image=random.integers(0, 256, (50, 2, 2, 1), dtype=np.uint8),
    label=np.arange(50) % 3,
  )
  stage = {"num_updates": 18, "batch_size": 8}
  return {
    "seed": 3,
    "run": ("teacher", "halve"),
    "cadence": {"log": 4, "checkpoint": 5},
    "data": {
      "source": {"kind": "npz", "path": str(path), "split": "train"},
      "conditional": True,
      "flip": True,
    },
    "model": {
      "network": {"kind": "mlp", "width": 8, "depth": 1},
      "schedule": {"kind": "cosine"},
    },
    "sampler": {"kind": "ddim"},
    "stages": {
      "teacher": {
        "objective": {"kind": "denoising"},
        "optimizer": {
          "learning_rate": 1e-2,
          "warmup": 3,
          "decay": "cosine",
          "ema_decay": 0.9,
        },
        **stage,
      },
      "halve": {
        "objective": {"kind": "progressive"},
        "optimizer": {"learning_rate": 1e-2, "decay": "linear"},
        "frozen": {"teacher": "teacher"},
        "start_steps": 8,
        "long_rounds": 0,
        **stage,
      },
    },
  }


@pytest.fixture(scope="session")
def pairs_config(tiny_config):
  """Makes a config with a teacher, its pairs, and a student that uses them."""
  stages = tiny_config["stages"]
  return {
    **tiny_config,
    "run": ("teacher", "pairs", "student"),
    "stages": {
      "teacher": {**stages["teacher"], "num_updates": 6},
      "pairs": {
        "kind": "pairs",
        "num_steps": 4,
        "num_pairs": 32,
        "held_out": 16,
        "shard_size": 8,
        "batch_size": 8,
      },
      "student": {
        **stages["teacher"],
        "objective": {"kind": "denoising_student"},
        "sampler": {"kind": "one_step"},
        "frozen": {"teacher": "teacher"},
        "pairs": "pairs",
        "select": {"by": "held_out_loss", "every": 4},
      },
    },
  }


@pytest.fixture
def edited(tiny_config):
  """Returns a function that sets a field of the tiny config, or removes it."""

  def edit(path, value=None):
    config = copy.deepcopy(tiny_config)
    *parents, name = path.split(".")
    fields = config
    for parent in parents:
      fields = fields.setdefault(parent, {})
    if value is None:
      del fields[name]
    else:
      fields[name] = value
    return config

  return edit


@pytest.fixture(scope="session")
def small_config(tiny_config):
  """Makes a config with a classifier, a teacher, a student; 2 updates each."""
  stages = {
    name: {**stage, "num_updates": 2}
    for name, stage in tiny_config["stages"].items()
  }
  stages["teacher"]["optimizer"] = {
    **stages["teacher"]["optimizer"],
    "warmup": 2,
  }
  stages["halve"]["start_steps"] = 2
  stages["classifier"] = {
    "objective": {"kind": "classification"},
    "optimizer": {"learning_rate": 1e-3},
    "num_updates": 2,
    "batch_size": 8,
  }
  return {
    **tiny_config,
    "run": ("classifier", "teacher", "halve"),
    "classifier": {
      "kind": "resnet",
      "channels": 4,
      "multipliers": (1,),
      "num_blocks": 1,
    },
    "stages": stages,
    "evaluation": {"num_images": 24, "batch_size": 8, "num_steps": (1, 2)},
  }


@pytest.fixture(scope="session")
def config_file(small_config, tmp_path_factory):
  """Writes a config file with the small config, and gives its path.

  The file also has recipes, each with a mistake that a config file can have.
  """
  path = tmp_path_factory.mktemp("configs") / "tiny.py"
  path.write_text(f"""
from ml_collections import ConfigDict

RECIPES = ("plain", "misspelt", "crash")

def get_config(recipe="plain"):
  config = ConfigDict({small_config!r})
  if recipe not in RECIPES:
    raise ValueError(f"recipe is {{recipe!r}}; pass one of {{RECIPES}}")
  if recipe == "misspelt":
    config.stages.halve.num_update = 3
  if recipe == "crash":
    config.nothing.nothing = 3
  return config
""")
  return path


@pytest.fixture(scope="session")
def write_config(tmp_path_factory):
  """Returns a function that writes a config file with the given fields."""

  def write(fields):
    path = tmp_path_factory.mktemp("configs") / "written.py"
    path.write_text(
      "from ml_collections import ConfigDict\n\n\n"
      f"def get_config():\n  return ConfigDict({fields!r})\n"
    )
    return path

  return write


@pytest.fixture(scope="session")
def run_cli():
  """Returns a function that runs a command and returns the exit status."""
  from diffdistill.cli.main import main

  def run(*arguments):
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
      # ml_collections loads config files with a deprecated function of Python,
      # whose warning is ignored.
      warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
      patch.setattr(sys, "argv", ["diffdistill", *map(str, arguments)])
      try:
        return main()
      finally:
        flags.FLAGS.unparse_flags()

  return run


@pytest.fixture
def refuse(run_cli, capsys):
  """Returns a function that asserts that one line refuses a command."""

  def run(status, *arguments):
    assert run_cli(*arguments) == status
    printed = capsys.readouterr()
    *progress, line = printed.err.splitlines()
    assert all(re.fullmatch(PROGRESS, p) for p in progress), progress
    assert line.startswith("diffdistill: ")
    assert "Traceback" not in line
    return line.removeprefix("diffdistill: ")

  return run


@pytest.fixture(scope="session")
def finished_run(config_file, run_cli, tmp_path_factory):
  """Trains a run of the config file to its end, and gives its workdir."""
  workdir = tmp_path_factory.mktemp("runs") / "tiny"
  assert (
    run_cli("train", f"--config={config_file}", f"--workdir={workdir}") == 0
  )
  return workdir


@pytest.fixture
def own_run(finished_run, tmp_path):
  """Copies the finished run, for a test that writes into the workdir."""
  return shutil.copytree(finished_run, tmp_path / "own" / "tiny")


@pytest.fixture
def train(config_file, tmp_path):
  """Gives the arguments of a training that must not create its workdir."""
  workdir = tmp_path / "runs" / "new"
  yield ("train", f"--config={config_file}", f"--workdir={workdir}")
  assert not workdir.exists()


@pytest.fixture(scope="session")
def learnable(tmp_path_factory):
  """Writes 240 images of three shapes, which a classifier can learn."""
  random = np.random.default_rng(0)
  label = np.arange(240) % 3
  shapes = np.array([[[1, 0], [0, 0]], [[1, 1], [0, 0]], [[1, 0], [0, 1]]])
  image = shapes[label] * 160 + random.integers(0, 96, (240, 2, 2))
  path = tmp_path_factory.mktemp("learnable") / "shapes.npz"
  np.savez(path, image=image.astype(np.uint8)[..., None], label=label)
  return str(path)


@pytest.fixture(scope="session")
def good_judge(small_config):
  """Gives the fields of a stage whose classifier learns the three shapes."""
  stage = small_config["stages"]["classifier"]
  return {**stage, "optimizer": {"learning_rate": 2e-2}, "num_updates": 60}


@pytest.fixture(scope="session")
def judged_config(small_config, pairs_config, learnable, good_judge):
  """Makes a config with a judge, a teacher, halvings and a student of pairs.

  The judge is a classifier that is good at its task. The other models have two
  updates each. There are two halvings. The best weights of all students are
  selected, and all students are judged.
  """
  stages = copy.deepcopy({**pairs_config["stages"], **small_config["stages"]})
  stages["classifier"] = good_judge
  stages["halve"]["start_steps"] = 4
  stages["halve"]["select"] = {"by": "distance", "every": 1, "num_images": 24}
  student = stages["student"]
  student["num_updates"] = 2
  student["optimizer"] = {**student["optimizer"], "warmup": 2}
  stages["student"]["select"] = {"by": "held_out_loss", "every": 2}
  source = {"kind": "npz", "path": learnable, "split": "train"}
  return {
    **small_config,
    "run": ("classifier", "teacher", "halve", "pairs", "student"),
    "data": {**small_config["data"], "source": source},
    "evaluation": {"num_images": 24, "batch_size": 8, "num_steps": (1, 2, 4)},
    "stages": stages,
  }
