"""Tests the conversion of images from floats to bytes and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.images import from_uint8, rounded, to_host, to_uint8


def test_every_byte_survives_the_round_trip():
  levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  np.testing.assert_array_equal(to_uint8(from_uint8(levels)), levels)
  assert from_uint8(levels).min() == -1
  assert from_uint8(levels).max() == 1


def neighbours(values):
  """Each float32 value with the 40 next larger and smaller ones, in order."""
  bits = np.float32(values).view(np.int32)[:, None] + np.arange(-40, 41)
  return np.sort(bits.astype(np.int32).view(np.float32).ravel())


def test_a_device_rounds_to_the_same_bytes_as_float64_at_every_half_way_point():
  half_way = (np.arange(-2, 258) + 0.5) / 127.5 - 1
  tiny = np.array([2.0**-54, 2.0**-53, 1e-12, 1e-30, 1e-45])
  values = np.concatenate(
    [
      neighbours(half_way[half_way != 0]),
      *(neighbours(side * tiny) for side in (1, -1)),
      [0.0, -0.0, 7, -7, 1e30, -1e30, 3e38, -3e38],
      np.linspace(-1.1, 1.1, 20_001),
      np.random.default_rng(0).normal(size=20_000),
    ]
  ).astype(np.float32)
  images = values[np.isfinite(values)][:, None, None, None]
  expected = to_uint8(images)
  np.testing.assert_array_equal(to_uint8(jnp.asarray(images)), expected)
  assert len(np.unique(expected)) == 256
  # Rounding to bytes and back must give the same floats too.
  found, bad = rounded(jnp.asarray(images))
  np.testing.assert_array_equal(found, from_uint8(expected))
  np.testing.assert_array_equal(rounded(images).images, found)
  assert bad == 0


def test_bytes_become_floats_with_and_without_fused_operations():
  """Devices may multiply and add in one operation, which rounds once."""
  odd = 2.0 * np.arange(256) - 255
  first, rest = 2057 / 2**19, np.float32(1 / 255 - 2057 / 2**19)
  assert (np.float32(odd * first) == odd * first).all()
  expected = from_uint8(np.arange(256, dtype=np.uint8)[:, None, None, None])
  for product in (odd * rest, np.float32(odd * rest)):
    fused = np.float32(odd * first + product)
    np.testing.assert_array_equal(fused, expected.ravel())


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
  for given in (images, np.asarray(images)):
    with pytest.raises(ValueError, match="1 of 3 images hold NaN"):
      to_uint8(given)
    assert int(rounded(given).bad) == 1
  # Infinities of both signs do not cancel, and large finite numbers are finite.
  large = jnp.full((3, 2, 2, 1), 3e38).at[0, 0].set(jnp.inf)
  large = large.at[0, 1].set(-jnp.inf)
  assert int(rounded(large).bad) == int(rounded(np.asarray(large)).bad) == 1


def test_a_sharded_batch_comes_to_the_host_in_order():
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  images = np.arange(16, dtype=np.float32).reshape(16, 1, 1, 1)
  np.testing.assert_array_equal(to_host(jax.device_put(images, rows)), images)
