"""Fixtures that tests of several networks share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(scope="session")
def trained():
  """Makes random weights and biases, scaled by fan-in; none is zero."""

  def make(network):
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    leaves = [
      jnp.asarray(
        rng.normal(size=a.shape) / np.sqrt(max(1, np.prod(a.shape[:-1]))),
        jnp.float32,
      )
      for a in leaves
    ]
    return jax.tree.unflatten(tree, leaves)

  return make


@pytest.fixture(scope="session")
def count():
  """A function that counts the weights of a network."""

  def make(network):
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))

  return make
