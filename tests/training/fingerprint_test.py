"""Tests that equal weights have the same fingerprint on every mesh."""

import jax
import numpy as np
import pytest

from diffdistill.training.fingerprint import fingerprint
from diffdistill.training.sharding import Layout, tree_shardings


@pytest.fixture
def params():
  random = np.random.default_rng(0)
  return {
    "dense": {
      "bias": random.normal(size=8).astype(np.float32),
      "kernel": random.normal(size=(16, 8)).astype(np.float32),
    }
  }


def changed(params, change):
  """Computes the fingerprint of the tree after a change of its kernel."""
  tree = jax.tree.map(np.copy, params)
  change(tree["dense"]["kernel"])
  return fingerprint(tree)


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (2, 1), (8, 1), (2, 4)])
def test_a_fingerprint_is_the_same_on_every_mesh(
  params, mesh_of, monkeypatch, data, fsdp
):
  monkeypatch.setattr("diffdistill.training.sharding.MIN_SIZE_TO_SPLIT", 1)
  on_mesh = jax.device_put(
    params, tree_shardings(params, Layout(mesh=mesh_of(data, fsdp)))
  )
  assert fingerprint(on_mesh) == fingerprint(params)


@pytest.mark.parametrize("bit", [0, 1, 22, 23, 30, 31])
def test_a_fingerprint_changes_with_every_bit(params, bit):
  def flip(kernel):
    kernel.view(np.uint32)[5, 3] ^= np.uint32(1 << bit)

  assert changed(params, flip) != fingerprint(params)


@pytest.mark.parametrize("there", [1, 2, 8, 15])
def test_a_fingerprint_changes_if_weights_are_swapped(params, there):
  def swap(kernel):
    kernel[[0, there]] = kernel[[there, 0]]

  assert changed(params, swap) != fingerprint(params)


def test_a_fingerprint_changes_with_the_names_of_weights(params):
  other = {"dense_1": params["dense"]}
  assert fingerprint(other) != fingerprint(params)
