"""A multilayer perceptron for toy data of a few dimensions."""

import flax.linen as nn
from jaxtyping import Array, Float

from diffdistill.arrays import Image, Label, Time
from diffdistill.networks.embeddings import Embedding
from diffdistill.networks.features import keep
from diffdistill.networks.require import require_even
from diffdistill.ranges import Channels, Classes, Depth, Waves, check_ranges


class MLP(nn.Module, kw_only=True):
  """A smooth function of a small image and its noise level.

  It has `depth` layers of swish(Dense(h) + Dense(embed)) on the flattened
  image. The last layer starts at zero, so the initial output is zero.

  Args:
    width: the channels of each layer and of the sinusoid; even, 4 or more.
    depth: the number of hidden layers.
    out_channels: the channels of the output; its height and width are those of
      the input.
    num_classes: the number of classes; 0 for an unconditional network.
    two_times: whether the network also reads s, the time a step aims at.
    told_guidance: whether the network also reads w, a guidance weight.
  """

  width: Waves
  depth: Depth
  out_channels: Channels
  num_classes: Classes = 0
  two_times: bool = False
  told_guidance: bool = False

  def __post_init__(self):
    super().__post_init__()
    check_ranges(self)
    require_even("width", self.width)

  @property
  def features(self) -> tuple[str, ...]:
    """The names of the hidden layers; their outputs are images of one pixel."""
    return tuple(f"layer_{index}" for index in range(self.depth))

  @nn.compact
  def __call__(
    self,
    x: Image,
    t: Time,
    label: Label | None,
    train: bool,
    s: Time | None = None,
    names: tuple[str, ...] = (),
    guidance: Float[Array, " b"] | None = None,
  ) -> Float[Array, "b h w out"]:
    """Computes the raw output in float32; `train` has no effect."""
    embed = nn.swish(
      Embedding(
        dim=self.width,
        embed_dim=self.width,
        num_classes=self.num_classes,
        two_times=self.two_times,
        told_guidance=self.told_guidance,
        name="embed",
      )(t, label, s, guidance)
    )
    batch, height, width, _ = x.shape
    h = x.reshape(batch, -1)
    for index in range(self.depth):
      h = nn.Dense(self.width, name=f"dense_{index}")(h)
      h = nn.swish(h + nn.Dense(self.width, name=f"embed_{index}")(embed))
      if names:
        keep(self, f"layer_{index}", h[:, None, None], names)
    h = nn.Dense(
      height * width * self.out_channels,
      kernel_init=nn.initializers.zeros,
      name="out",
    )(h)
    return h.reshape(batch, height, width, self.out_channels)
