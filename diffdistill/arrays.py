"""Names of what flows through the house.

Images are in [-1, 1], channels last. Times are in [0, 1]: t = 0 is data,
t = 1 is noise, and s < t is the time a step aims at. A toy of d dimensions is
an image of shape (1, 1, d). Annotations are checked in tests and cost nothing
in production.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jaxtyping
from jaxtyping import Array, Bool, Float, Int

Image = Float[Array, "b h w c"]
Time = Float[Array, " b"]
Label = Int[Array, " b"]
Scalar = Float[Array, ""]
Key = jaxtyping.Key[Array, ""]

# A tree of arrays: the weights of one network.
Params = Any


class Text(NamedTuple):
  """Encoded captions of a batch.

  tokens: one vector a token. mask: False where a caption has ended. pooled: one
  vector a caption, for encoders that give one.
  """

  tokens: Float[Array, "b n d"]
  mask: Bool[Array, "b n"]
  pooled: Float[Array, "b e"] | None = None


class Condition(NamedTuple):
  """A network is told this of each image of a batch; None for nothing.

  Objectives hand it on, and only networks look inside.

  label: the class. text: the caption. guidance: the weight w, for networks
  that were trained to be told it.
  """

  label: Label | None = None
  text: Text | None = None
  guidance: Float[Array, " b"] | None = None


UNCONDITIONAL = Condition()

# An objective is given this. "image": Image and "condition": Condition; of
# pairs also "noise", of the images' shape.
Batch = Mapping[str, Any]
# Slash-named (sum, count) pairs, so that means over hosts are unbiased.
Metrics = dict[str, tuple[Array, Array]]
