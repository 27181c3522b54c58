"""Defines fixtures that tests of several importers use."""

import dataclasses

import jax
import numpy as np
import pytest

from diffdistill.interop.model import network_of


@pytest.fixture(scope="session")
def with_weights():
  """Returns a function that gives a model random weights without compiling."""

  def draw(model):
    shapes = jax.eval_shape(network_of(model).init, jax.random.key(0))
    random = np.random.default_rng(0)
    params = jax.tree.map(
      lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes
    )
    return dataclasses.replace(model, params=params)

  return draw
