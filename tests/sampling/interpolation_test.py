import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.sampling.interpolation import slerp


def noise(seed, shape=(4, 4, 3)):
  return jax.random.normal(jax.random.key(seed), shape)


def angle(a, b):
  a, b = (np.asarray(v, np.float64).ravel() for v in (a, b))
  return np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("n", [2, 11])
def test_slerp_points_have_equal_angles_and_the_length_of_the_ends(n):
  a, b = noise(0), noise(1)
  b = b * jnp.linalg.norm(a.ravel()) / jnp.linalg.norm(b.ravel())
  points = slerp(a, b, n)
  assert points.shape == (n, 4, 4, 3)
  np.testing.assert_allclose(points[0], a, rtol=1e-6)
  np.testing.assert_allclose(points[-1], b, rtol=1e-6)
  for i, point in enumerate(points):
    # slerp treats an image as one vector of 48 numbers, not 16 vectors of 3.
    assert np.linalg.norm(point) == pytest.approx(np.linalg.norm(a), rel=1e-5)
    expected = angle(a, b) * i / (n - 1)
    assert angle(a, point) == pytest.approx(expected, abs=1e-3)


def test_slerp_between_orthogonal_ends_agrees_with_the_formula():
  a, b = jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])
  points = slerp(*(v.reshape(1, 1, 2) for v in (a, b)), 4)[:, 0, 0]
  f = np.pi / 2 * np.arange(4) / 3
  expected = np.stack([2 * np.cos(f), np.sin(f)], axis=1)
  np.testing.assert_allclose(points, expected, atol=1e-6)


@pytest.mark.parametrize("distance", [0.0, 1e-7, 1e-5, 1e-3])
def test_slerp_between_nearly_parallel_ends_is_almost_linear(distance):
  a = noise(0)
  b = a + distance * noise(1)
  points = np.asarray(slerp(a, b, 5), np.float64)
  line = np.linspace(0, 1, 5).reshape(5, 1, 1, 1)
  # The tolerance is for the difference between an arc and its chord, which is
  # proportional to the square of the angle.
  np.testing.assert_allclose(
    points, a[None] * (1 - line) + b[None] * line, atol=1e-5
  )


def test_slerp_between_opposite_ends_is_linear():
  a = noise(0)
  points = slerp(a, -a, 3)
  np.testing.assert_allclose(points[1], jnp.zeros_like(a), atol=1e-6)
  np.testing.assert_array_equal(points[2], -a)


def test_fewer_than_two_points_are_refused():
  with pytest.raises(ValueError, match="n is 1; pass 2 or more"):
    slerp(noise(0), noise(1), 1)
