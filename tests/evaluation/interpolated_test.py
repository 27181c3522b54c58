"""Images along an arc from one noise to another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.evaluation.generator import Generator
from diffdistill.evaluation.interpolated import interpolated
from diffdistill.images import to_host

ROWS, POINTS, SEED = 3, 5, 7


def shifted(params, noise, label, key, num_steps):
  """A sampler that returns its noise, shifted by the label and the weights."""
  del key, num_steps
  shift = 0.0 if label is None else label.astype(jnp.float32) * 100
  return params * noise + jnp.reshape(shift, (-1, 1, 1, 1))


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("num_classes", [0, 2])
def test_arcs_lead_from_one_noise_of_the_generator_to_another(
  mesh_of, num_devices, num_classes
):
  generator = Generator(
    sample=shifted,
    image_shape=(2, 3, 1),
    num_classes=num_classes,
    mesh=mesh_of(num_devices),
    batch_size=8,
  )
  images = to_host(
    interpolated(generator, jnp.asarray(2.0), SEED, ROWS, POINTS, 1)
  )
  noise = to_host(generator.noise(SEED, 0))
  assert images.shape == (ROWS * POINTS, 2, 3, 1)
  ways = images.reshape(ROWS, POINTS, -1)
  if num_classes:
    # Noise is well below 50, so each value shows its label.
    labels = np.rint(ways.mean(axis=-1) / 100)
    np.testing.assert_array_equal(labels, [[0] * 5, [1] * 5, [0] * 5])
    ways = ways - 100 * labels[..., None]
  ends = 2 * noise[: 2 * ROWS].reshape(ROWS, 2, -1)
  np.testing.assert_allclose(ways[:, [0, -1]], ends, atol=2e-5)
  # The middle of the arc is the sum of its ends over 2 cos(theta / 2).
  a, b = ends[:, 0], ends[:, 1]
  norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
  theta = np.arccos((a * b).sum(axis=1) / norms)
  middle = (a + b) / (2 * np.cos(theta / 2))[:, None]
  np.testing.assert_allclose(ways[:, POINTS // 2], middle, atol=2e-5)


def test_fewer_than_two_points_are_refused(mesh_of):
  generator = Generator(
    sample=shifted, image_shape=(2, 3, 1), mesh=mesh_of(1), batch_size=8
  )
  with pytest.raises(ValueError, match="n is 1; pass 2 or more"):
    interpolated(generator, jax.numpy.asarray(1.0), SEED, ROWS, 1, 1)
