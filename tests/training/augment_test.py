"""Tests that stored bytes become training images by the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.arrays import Condition
from diffdistill.training.augment import as_trained

# Each of the 256 byte values occurs once.
BYTES = np.random.default_rng(0).permutation(256).astype(np.uint8)
BYTES = BYTES.reshape(4, 4, 8, 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_every_byte_agrees_with_the_formula_up_to_rounding(dtype):
  made = jax.jit(as_trained)({"image": jnp.array(BYTES, dtype)})
  assert made["image"].dtype == jnp.float32
  expected = BYTES.astype(np.float64) / 127.5 - 1
  # The tolerance allows two roundings: one of the quotient and one of the
  # difference.
  np.testing.assert_allclose(made["image"], expected, rtol=0, atol=2**-23)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_black_is_minus_one_and_white_is_one_exactly(dtype):
  image = jnp.array([0, 255], dtype).reshape(1, 1, 2, 1)
  made = jax.jit(as_trained)({"image": image})["image"]
  np.testing.assert_array_equal(made[0, 0, :, 0], [-1, 1])


def test_float_images_are_not_rounded_to_bytes():
  image = jnp.array([63.75, 191.25]).reshape(1, 1, 2, 1)
  made = as_trained({"image": image})["image"]
  np.testing.assert_array_equal(made[0, 0, :, 0], [-0.5, 0.5])


def test_rows_with_flip_are_mirrored_left_to_right():
  flip = np.array([False, True, True, False])
  label = jnp.arange(4)
  straight = as_trained({"image": jnp.array(BYTES)})["image"]
  made = as_trained(
    {"image": jnp.array(BYTES), "label": label, "flip": jnp.array(flip)}
  )
  assert set(made) == {"image", "condition"}
  assert made["condition"] == Condition(label=label)
  for row, mirror in enumerate(flip):
    expected = straight[row, :, ::-1] if mirror else straight[row]
    np.testing.assert_array_equal(made["image"][row], expected)
  assert not np.array_equal(made["image"], straight)


def test_stored_noise_becomes_float32():
  noise = np.random.default_rng(1).normal(size=BYTES.shape).astype(np.float16)
  made = as_trained({"image": jnp.array(BYTES), "noise": jnp.array(noise)})
  assert made["noise"].dtype == jnp.float32
  np.testing.assert_array_equal(made["noise"], noise.astype(np.float32))
