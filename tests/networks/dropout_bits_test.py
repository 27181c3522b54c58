"""Dropout can draw its random bits by the generator of the device."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.networks.network import DROPOUT_BITS, LinenNetwork
from diffdistill.run import from_config

SHAPE = (16, 16, 3)


class Dropping(nn.Module):
  """A network that only drops values of its input."""

  @nn.compact
  def __call__(self, x, t, label, train):
    return nn.Dropout(0.25)(x, deterministic=not train)


def network(bits):
  return LinenNetwork(module=Dropping(), image_shape=SHAPE, dropout_bits=bits)


@pytest.mark.parametrize("bits", DROPOUT_BITS)
def test_dropout_drops_its_share_by_the_chosen_generator(bits):
  x, t = jnp.ones((40, *SHAPE)), jnp.zeros(40)

  @jax.jit
  def drop(key):
    return network(bits).apply({}, x, t, key=key)

  lowered = drop.lower(jax.random.key(0)).as_text()
  assert ("rng_bit_generator" in lowered) == (bits != "threefry2x32")
  first, again, other = (np.asarray(drop(jax.random.key(k))) for k in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  dropped = first == 0
  # The standard deviation of the share of 30,720 values is 0.0025.
  assert abs(dropped.mean() - 0.25) < 0.0125
  np.testing.assert_allclose(first[~dropped], 1 / 0.75, rtol=1e-6)
  # A quarter of a quarter is dropped by both keys.
  assert abs((dropped & (other == 0)).mean() - 0.0625) < 0.0075


def test_an_unknown_generator_is_refused():
  with pytest.raises(ValueError, match="dropout_bits is 'philox'; pass one of"):
    network("philox")


def test_a_network_without_dropout_needs_no_generator(edited):
  config = edited("model.dropout_bits", "rbg")
  with pytest.raises(ValueError, match=r"is 'rbg', but the network has no dro"):
    from_config.build(config)
