"""Eight CPU devices, strict ranks, cheap and cached compilation."""

import copy
import os

# Tests compile far more than they run: the least optimised code is fastest.
os.environ["XLA_FLAGS"] = " ".join(
  [os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0"]
).strip()

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", ".cache/jax")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(scope="session")
def mesh_of():
  """make_mesh, of the first data * fsdp devices."""

  def make(data, fsdp=1):
    devices = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

  return make


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory):
  """A teacher and students of 4, 2 and 1 steps: 18 updates each."""
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


@pytest.fixture
def edited(tiny_config):
  """The tiny config with a field set, or removed where the value is None."""

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
