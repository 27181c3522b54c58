"""Names of what flows through the house.

Images are in [-1, 1], channels last. Times are in [0, 1]: t = 0 is data,
t = 1 is noise, and s < t is the time a step aims at. A toy of d dimensions is
an image of shape (1, 1, d). Annotations are checked in tests and cost nothing
in production.
"""

from collections.abc import Mapping
from typing import Any

import jaxtyping
from jaxtyping import Array, Float, Int

Image = Float[Array, "b h w c"]
Time = Float[Array, " b"]
Label = Int[Array, " b"]
Scalar = Float[Array, ""]
Key = jaxtyping.Key[Array, ""]

# A tree of arrays: the weights of one network.
Params = Any
# "image": Image, "label": Label; more where an objective consumes more.
Batch = Mapping[str, Array]
# Slash-named (sum, count) pairs, so that means over hosts are unbiased.
Metrics = dict[str, tuple[Array, Array]]
