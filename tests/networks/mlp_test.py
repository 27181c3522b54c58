import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.arrays import Condition
from diffdistill.networks.mlp import MLP
from diffdistill.networks.network import LinenNetwork


def test_initial_output_is_zero_and_every_input_changes_it_later():
  module = MLP(width=8, depth=2, out_channels=4, num_classes=3)
  network = LinenNetwork(module=module, image_shape=(1, 1, 2), num_classes=3)
  params = network.init(jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (3, 1, 1, 2))
  t = jnp.full(3, 0.5)
  label, other = (
    Condition(label=jnp.array(classes)) for classes in ([0, 1, 1], [2, 2, 2])
  )
  output = network.apply(params, x, t, label)
  assert output.shape == (3, 1, 1, 4)
  np.testing.assert_array_equal(output, 0)

  params["out"]["kernel"] = jax.random.normal(jax.random.key(2), (8, 4))
  output = network.apply(params, x, t, label)
  changes = (
    (x + 1, t, label),
    (x, t + 0.3, label),
    (x, t, other),
  )
  for inputs in changes:
    assert jnp.max(jnp.abs(network.apply(params, *inputs) - output)) > 1e-3


def test_images_are_flattened_before_the_first_layer():
  module = MLP(width=8, depth=1, out_channels=1)
  network = LinenNetwork(module=module, image_shape=(2, 3, 1))
  params = network.init(jax.random.key(0))
  assert params["dense_0"]["kernel"].shape == (6, 8)
  output = network.apply(params, jnp.ones((5, 2, 3, 1)), jnp.ones(5))
  assert output.shape == (5, 2, 3, 1)


@pytest.mark.parametrize("field", ["width", "depth", "out_channels"])
def test_invalid_fields_are_refused(field):
  fields = {"width": 8, "depth": 2, "out_channels": 1, field: 0}
  with pytest.raises(ValueError, match=f"{field} is 0"):
    MLP(**fields)
