import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.training.averaged_weights import ema_update


def one(ema, params, decay, step):
  tree = ema_update({"w": jnp.float32(ema)}, {"w": params}, decay, step)
  return float(tree["w"])


@pytest.mark.parametrize(
  ("step", "decay"),
  # The decay of the average is (1 + step) / (10 + step) until it reaches 0.9 at
  # step 80.
  [(0, 0.1), (8, 0.5), (79, 80 / 89), (80, 0.9), (10_000, 0.9)],
)
def test_the_decay_of_the_average_rises_to_its_value(step, decay):
  average = one(2.0, jnp.float32(5.0), 0.9, jnp.int32(step))
  np.testing.assert_allclose(average, decay * 2 + (1 - decay) * 5, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.99])
def test_the_average_of_equal_weights_has_the_same_bits(decay):
  w = jnp.array([0.1, -3.0, 1e-8])
  for step in (0, 3, 1000):
    average = ema_update({"w": w}, {"w": w}, decay, jnp.int32(step))
    np.testing.assert_array_equal(average["w"], w)


def test_with_decay_zero_the_average_is_the_new_weights():
  assert one(2.0, jnp.float32(5.0), 0.0, jnp.int32(50)) == 5.0
