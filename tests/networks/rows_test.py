import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.networks.rows import keep_rows, scanned
from diffdistill.training.sharding import batch_sharding, replicated


class Noisy(nn.Module):
  """Maps h to 2 h + given + shared + b.

  It also returns the parameter b, and a vector of ones after dropout.
  """

  @nn.compact
  def __call__(self, h, shared, given):
    b = self.param("b", nn.initializers.normal(), (2,))
    noise = nn.Dropout(0.5)(jnp.ones(8), deterministic=False)
    return 2 * h + given + shared + b, (b, noise)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_scanned_blocks_compute_what_a_loop_over_blocks_does(remat, reverse):
  row = scanned(
    Noisy, 3, in_axes=(nn.broadcast, 0), remat=remat, reverse=reverse
  )()
  h, shared = jnp.array([1.0, 2.0]), jnp.array([0.1, 0.2])
  given = jnp.arange(6.0).reshape(3, 2)
  keys = dict(
    zip(("params", "dropout"), jax.random.split(jax.random.key(0)), strict=True)
  )
  (output, (b, noise)), variables = row.init_with_output(keys, h, shared, given)
  np.testing.assert_array_equal(variables["params"]["b"], b)
  for drawn in (b, noise):
    assert len(np.unique(drawn, axis=0)) == 3
  order = reversed(range(3)) if reverse else range(3)
  for index in order:
    h = 2 * h + given[index] + shared + b[index]
  np.testing.assert_allclose(output, h, rtol=1e-6)


@pytest.mark.parametrize(("rows", "placed"), [(16, "split"), (6, "whole")])
def test_keep_rows_places_rows_on_the_devices_of_the_batch(
  rows, placed, mesh_of
):
  mesh = mesh_of(2, 4)
  h = jax.device_put(jnp.ones((rows, 3, 2)), replicated(mesh))
  kept = jax.jit(lambda h: keep_rows(2 * h))(h)
  wanted = {"split": batch_sharding, "whole": replicated}[placed](mesh)
  assert kept.sharding.is_equivalent_to(wanted, 3)


def test_keep_rows_without_a_mesh_does_nothing():
  jaxpr = jax.make_jaxpr(keep_rows)(jnp.ones((8, 2)))
  assert not jaxpr.eqns
