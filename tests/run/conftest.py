"""Fixtures for tests of the config builder."""

import jax
import pytest


@pytest.fixture
def moved():
  """Weights whose last layer is not zero, unlike in a new network."""

  def make(built):
    params = built.denoiser.network.init(jax.random.key(2))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    return jax.tree.unflatten(
      structure,
      [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
      ],
    )

  return make


@pytest.fixture
def judged(edited):
  """A config with a judge, a teacher, and students on the judge's features."""
  config = edited(
    "classifier",
    {"kind": "resnet", "channels": 4, "multipliers": (1,), "num_blocks": 1},
  )
  config["run"] = ("judge", "teacher", "halve")
  config["stages"]["judge"] = {
    "objective": {"kind": "classification"},
    "optimizer": {"learning_rate": 1e-3},
    "num_updates": 1,
    "batch_size": 8,
  }
  halve = config["stages"]["halve"]
  halve["objective"] = {"kind": "classifier_features"}
  halve["frozen"] = {"teacher": "teacher", "classifier": "judge"}
  return config
