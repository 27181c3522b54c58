import jax.numpy as jnp
import numpy as np

from diffdistill.objectives.objective import summed, weighted_loss


def test_losses_are_means_over_pixels_of_each_example():
  target = jnp.arange(12.0).reshape(2, 2, 1, 3)
  x0 = target + jnp.array([1.0, 2.0]).reshape(2, 1, 1, 1)
  loss, mse = weighted_loss(target, x0, jnp.array([3.0, 0.5]))
  np.testing.assert_allclose(mse, [1, 4])
  np.testing.assert_allclose(loss, [3, 2])


def test_summed_is_a_sum_and_a_count():
  total, count = summed(jnp.array([1.0, 2.0, 6.0]))
  assert float(total) == 9
  assert float(count) == 3
  assert count.dtype == jnp.float32
