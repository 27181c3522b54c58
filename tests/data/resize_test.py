"""Tests that `fit` gives means that are computed by hand."""

import numpy as np
import pytest

from diffdistill.data.resize import (
  center_crop,
  check_fit,
  fit,
  resize_area,
  resize_bilinear,
)


def _noise(*shape: int) -> np.ndarray:
  return np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)


def test_area_at_an_integer_ratio_is_the_mean_of_blocks():
  image = _noise(12, 12, 3)
  blocks = image.reshape(4, 3, 4, 3, 3).mean(axis=(1, 3))
  np.testing.assert_allclose(resize_area(image, 4), blocks, rtol=1e-5)


def test_area_counts_fractions_of_pixels():
  # Three pixels become two, and each new one covers one pixel and half of the
  # middle pixel.
  row = np.array([30, 60, 120], np.uint8)
  image = np.tile(row, (3, 1))[..., None]
  resized = resize_area(image, 2)
  expected = [(30 + 0.5 * 60) / 1.5, (0.5 * 60 + 120) / 1.5]
  np.testing.assert_allclose(resized[0, :, 0], expected, rtol=1e-6)
  np.testing.assert_allclose(resized[1], resized[0])


def test_area_enlarges_by_repeating_at_an_integer_ratio():
  image = _noise(3, 3, 1)
  np.testing.assert_allclose(
    resize_area(image, 6), image.repeat(2, 0).repeat(2, 1), rtol=1e-6
  )


def test_area_stretches_each_axis_separately():
  image = np.zeros((2, 6, 1), np.uint8)
  image[:, 3:] = 200
  np.testing.assert_allclose(
    resize_area(image, 2)[..., 0], [[0, 200], [0, 200]]
  )


def test_bilinear_is_antialiased():
  checkerboard = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
  resized = resize_bilinear(checkerboard[..., None], 16)
  # Without antialiasing the result would be black or white. The tolerance of
  # half a level is for the few taps of the filter at the border.
  np.testing.assert_allclose(resized[2:-2, 2:-2], 127.5, atol=0.5)
  assert np.ptp(resized) < 26


def test_bilinear_keeps_a_ramp_and_its_channels():
  ramp = np.arange(32, dtype=np.float32) * 4
  image = np.stack([np.tile(ramp, (32, 1)), np.tile(ramp, (32, 1)).T], -1)
  resized = resize_bilinear(image, 8)
  inside = ramp.reshape(8, 4).mean(1)[1:-1]
  np.testing.assert_allclose(resized[3, 1:-1, 0], inside, rtol=1e-5)
  np.testing.assert_allclose(resized[1:-1, 3, 1], inside, rtol=1e-5)


@pytest.mark.parametrize(
  ("shape", "rows", "columns"),
  [
    ((4, 7), (0, 4), (1, 5)),
    ((9, 4), (2, 6), (0, 4)),
    ((5, 5), (0, 5), (0, 5)),
  ],
)
def test_center_crop_keeps_the_middle_square(shape, rows, columns):
  image = _noise(*shape, 3)
  expected = image[slice(*rows), slice(*columns)]
  np.testing.assert_array_equal(center_crop(image), expected)


def test_fit_crops_or_stretches():
  # The outer thirds of the image are white. They are cut off if the image is
  # cropped, and stay if it is stretched.
  image = np.full((4, 12, 1), 255, np.uint8)
  image[:, 4:8] = 0
  assert fit(image, 2, "area", "center").max() == 0
  stretched = fit(image, 3, "area", "none")
  np.testing.assert_allclose(stretched[:, :, 0], [[255, 0, 255]] * 3)


@pytest.mark.parametrize("method", ["area", "bilinear"])
def test_fit_gives_floats_within_range(method):
  image = np.full((375, 500, 3), 255, np.uint8)
  fitted = fit(image, 64, method, "center")
  assert fitted.shape == (64, 64, 3)
  assert fitted.dtype == np.float32
  assert fitted.max() <= 255
  # The tolerance is for float32: weights of 2 x 6 taps sum to one up to
  # rounding.
  np.testing.assert_allclose(fitted, 255, rtol=1e-5)


def test_fit_without_a_size_changes_nothing():
  image = np.arange(12, dtype=np.uint8).reshape(2, 6, 1)
  assert fit(image, None, "area", "center") is image


@pytest.mark.parametrize(
  ("fields", "value"),
  [
    (("cubic", "center"), "resize is 'cubic'; pass one of area, bilinear"),
    (("area", "random"), "crop is 'random'; pass one of center, none"),
  ],
)
def test_wrong_settings_are_refused_with_their_value(fields, value):
  with pytest.raises(ValueError, match=value) as refusal:
    check_fit(*fields)
  assert "\n" not in str(refusal.value)
