"""A paper that is arithmetic, meshes of some devices, and a run of seconds."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from diffdistill.training.sharding import AXES


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeastSquares:
  """x (student + auxiliary / 10) against x teacher; nothing random in it.

  A NaN in a batch makes its gradient NaN. `traces` grows by the name at each
  trace; the metric "draw" shows which key the loss was given.
  """

  size: int = 6
  traces: list = dataclasses.field(default_factory=list)

  trains: ClassVar = ("student", "auxiliary")
  needs: ClassVar = ("teacher",)
  consumes: ClassVar = "images"
  sampler: ClassVar = None

  def init(self, key, frozen):
    keys = jax.random.split(key)
    return {
      name: {"w": jax.random.normal(key, (self.size, self.size))}
      for name, key in zip(self.trains, keys, strict=True)
    }

  def turn(self, step):
    return (self.trains[step % 2],)

  def loss(self, name, params, frozen, batch, key, hparams):
    self.traces.append(name)
    x = batch["image"].reshape(batch["image"].shape[0], -1)
    w = params["student"]["w"] + 0.1 * params["auxiliary"]["w"]
    error = x @ (w - frozen["teacher"]["w"])
    losses = jnp.mean(error**2, axis=1)
    one = jnp.ones(())
    metrics = {
      f"{name}/loss": (jnp.sum(losses), jnp.float32(x.shape[0])),
      f"{name}/draw": (jax.random.normal(key), one),
    }
    return jnp.mean(losses), metrics


@pytest.fixture(scope="session")
def least_squares():
  return LeastSquares


@pytest.fixture(scope="session")
def mesh_of():
  """make_mesh, of the first data * fsdp devices."""

  def make(data, fsdp=1):
    devices = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 2)

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
