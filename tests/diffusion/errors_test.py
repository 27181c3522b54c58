import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.diffusion.errors import pseudo_huber


@pytest.mark.parametrize("c", [0.0, 0.03, 100.0])
def test_pseudo_huber_is_the_formula_and_its_gradient_is_finite(c):
  error = np.random.default_rng(0).normal(size=(4, 2, 3, 1))
  error[0], error[1] = 0, 1e-3 * error[1]
  square = (error**2).sum((1, 2, 3))
  expected = np.sqrt(square + c**2) - c
  error = jnp.asarray(error, jnp.float32)
  # The difference of square roots would lose digits for the small errors.
  np.testing.assert_allclose(pseudo_huber(error, c), expected, rtol=1e-5)
  slope = jax.grad(lambda e: jnp.sum(pseudo_huber(e, c)))(error)
  length = np.sqrt(square + c**2).reshape(-1, 1, 1, 1)
  by_hand = np.asarray(error) / np.where(length > 0, length, 1)
  np.testing.assert_allclose(slope, by_hand, rtol=1e-5)
