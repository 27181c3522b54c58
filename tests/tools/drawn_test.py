"""A wish for images holds whole numbers in their ranges."""

import pytest

from diffdistill.tools.drawn import Wish


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"num_images": 0}, "num_images is 0; pass 1 or more"),
    ({"num_steps": 0}, "num_steps is 0; pass 1 or more"),
    (
      {"num_steps": 10**6},
      "num_steps is 1000000; pass 1 or more, at most 100000",
    ),
    ({"seed": -1}, "seed is -1; pass 0 or more"),
    ({"interpolate": 1}, "interpolate is 1; pass 2 or more"),
    ({"guidance": -1.0}, "guidance is -1.0; pass 0 or more"),
  ],
)
def test_a_number_out_of_its_range_is_refused(fields, message):
  with pytest.raises(ValueError, match=f"^{message}$"):
    Wish(**{"num_images": 1, **fields})
