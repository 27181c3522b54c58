"""Parts of the FID network; tests/interop compares the whole with torch."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.networks.inception import average_pool, inception, prepare

INTEROP = pathlib.Path(__file__).parents[1] / "interop"
GOLDEN = json.loads((INTEROP / "golden_inception.json").read_text())


def test_parameter_count_and_output_shapes_are_those_of_inception():
  net = inception((32, 32, 3))
  params = jax.eval_shape(net.init, jax.random.key(0))
  # torchvision's Inception with 1000 classes has 23 834 568 parameters without
  # the auxiliary classifier. The FID network has 1008 classes and no bias.
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert count == 23_834_568 - 1000 + 8 * 2048
  x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  out = jax.eval_shape(net.apply, params, x)
  assert out.features.shape == (2, 2048)
  assert out.logits.shape == (2, 1008)
  assert out.features.dtype == out.logits.dtype == jnp.float32


def test_images_are_resized_as_torch_resizes_them():
  # The resize halves the number of rows, which would reveal antialiasing, and
  # doubles the number of columns.
  pixels = np.random.RandomState(1).randint(0, 256, (1, 600, 150, 3))
  out = prepare(jnp.asarray(pixels / 127.5 - 1, jnp.float32))
  assert out.shape == (1, 299, 299, 3)
  # The tolerance is for float32 sampling positions: among 600 rows they err by
  # 4e-5 of a row, and neighbouring pixels differ by up to 2.
  np.testing.assert_allclose(
    out[0, ::40, ::40, 0], GOLDEN["resized"], rtol=0, atol=1e-4
  )


def test_images_of_the_network_s_size_are_not_resized():
  x = jax.random.uniform(jax.random.key(0), (1, 299, 299, 3), minval=-1)
  np.testing.assert_allclose(prepare(x), x, rtol=0, atol=1e-6)


def test_grey_images_are_repeated_to_three_channels():
  grey = jax.random.uniform(jax.random.key(0), (2, 28, 20, 1), minval=-1)
  repeated = jnp.concatenate([grey] * 3, axis=-1)
  np.testing.assert_array_equal(prepare(grey), prepare(repeated))


def test_average_pooling_ignores_the_padding():
  ones = jnp.ones((1, 4, 5, 2))
  np.testing.assert_allclose(average_pool(ones), ones, rtol=1e-6)
  x = jnp.arange(4.0).reshape(1, 2, 2, 1)
  np.testing.assert_allclose(average_pool(x), jnp.full((1, 2, 2, 1), 1.5))


@pytest.mark.parametrize("shape", [(32, 32, 4), (32, 32, 2)])
def test_images_of_2_or_4_channels_are_refused(shape):
  with pytest.raises(ValueError, match="Inception sees 3 channels"):
    inception(shape)


def test_images_of_a_size_other_than_configured_are_refused():
  net = inception((32, 32, 3))
  with pytest.raises(ValueError, match=r"\(16, 16, 3\), but .* \(32, 32, 3\)"):
    net.apply({}, jnp.zeros((1, 16, 16, 3)))
