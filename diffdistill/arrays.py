"""Names for the types of arrays that all packages share.

Images are in [-1, 1], with channels last. Times are in [0, 1]: t = 0 is data,
t = 1 is noise, and a sampler step goes from t to s < t. A toy point of d
dimensions is an image of shape (1, 1, d). Tests check the shapes; production
does not.
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
  """The encoded captions of a batch.

  tokens: a vector for each token.
  mask: False for each position after the end of a caption.
  pooled: a vector for each caption, if the encoder gives one.
  """

  tokens: Float[Array, "b n d"]
  mask: Bool[Array, "b n"]
  pooled: Float[Array, "b e"] | None = None


class Condition(NamedTuple):
  """The inputs of a network that describe each image of a batch.

  Objectives pass a condition on, and only networks read its fields. A field
  that is None is not given to the network.

  label: the class of each image.
  text: the caption of each image.
  guidance: the guidance weight w, for networks that take it as an input.
  """

  label: Label | None = None
  text: Text | None = None
  guidance: Float[Array, " b"] | None = None


UNCONDITIONAL = Condition()

# The input of an objective's loss. It holds "image": Image and "condition":
# Condition; a batch of pairs also holds "noise", of the same shape as "image".
Batch = Mapping[str, Any]
# Pairs (sum, count) by name, such as "student/loss". A mean over hosts divides
# the sum of all sums by the sum of all counts.
Metrics = dict[str, tuple[Array, Array]]
