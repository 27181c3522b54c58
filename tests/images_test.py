"""Tests the conversion of images from floats to bytes and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.images import from_uint8, to_host, to_uint8


def test_every_byte_survives_the_round_trip():
  levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  np.testing.assert_array_equal(to_uint8(from_uint8(levels)), levels)
  assert from_uint8(levels).min() == -1
  assert from_uint8(levels).max() == 1


@pytest.mark.parametrize(
  ("value", "expected"),
  [(-1, 0), (1, 255), (-7, 0), (7, 255), (10.6, 11), (10.4, 10)],
)
def test_values_are_rounded_and_clipped_not_truncated(value, expected):
  # Values above 7 are grey levels of the result. They must be rounded, because
  # truncation would turn 10.6 into 10.
  x = value / 127.5 - 1 if value > 7 else value
  images = jnp.full((1, 1, 1, 1), x, jnp.float32)
  assert to_uint8(images).item() == expected


def test_images_that_hold_nan_are_refused_and_counted():
  images = jnp.zeros((3, 2, 2, 1)).at[1, 0, 0, 0].set(jnp.nan)
  with pytest.raises(ValueError, match="1 of 3 images hold NaN"):
    to_uint8(images)


def test_a_sharded_batch_comes_to_the_host_in_order():
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  images = np.arange(16, dtype=np.float32).reshape(16, 1, 1, 1)
  np.testing.assert_array_equal(to_host(jax.device_put(images, rows)), images)
