"""Tests that shapes which a later step could not use are refused at once."""

import pytest

from diffdistill.data.shapes import check_image_shape


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (48, 64, 3)])
def test_grey_and_rgb_are_accepted(shape):
  check_image_shape(shape, "data.source")


@pytest.mark.parametrize(
  ("shape", "guess"),
  [
    ((3, 32, 32), "are channels first?"),
    ((1, 28, 28), "are channels first?"),
    ((32, 32, 4), "is the last channel transparency?"),
    ((32, 32, 2), "is the last channel transparency?"),
    ((32, 32, 13), "1 channel"),
    ((0, 32, 3), "without pixels"),
  ],
)
def test_other_shapes_are_refused_with_a_guess(shape, guess):
  with pytest.raises(ValueError, match="source has images of shape") as refusal:
    check_image_shape(shape, "data.source")
  assert guess in str(refusal.value)
  assert str(shape) in str(refusal.value)
  assert "\n" not in str(refusal.value)
