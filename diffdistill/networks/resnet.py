"""The residual classifiers of the literature, for published weights.

They are those of He et al. 2016a in torchvision's form: the stride of a
bottleneck is on its 3x3 convolution, and every strided layer pads both sides
equally. Flax's "SAME" would pad the far side only.
"""

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import Image
from diffdistill.networks.classifier import Classification
from diffdistill.networks.layers import Map
from diffdistill.networks.require import require_known
from diffdistill.ranges import Channels, Range, SomeClasses, check_ranges

# By depth: the number of blocks of each level (He et al. 2016a, Table 1), and
# whether the blocks are bottlenecks.
DEPTHS = {
  18: ((2, 2, 2, 2), False),
  34: ((3, 4, 6, 3), False),
  50: ((3, 4, 6, 3), True),
  101: ((3, 4, 23, 3), True),
  152: ((3, 8, 36, 3), True),
}
STEMS = ("imagenet", "cifar")
EXPANSION = 4  # a bottleneck's output has this many times its channels


def convolution(
  features: int, size: int, *, name: str, stride: int = 1
) -> nn.Conv:
  """A size x size convolution without bias, padded by half its size."""
  return nn.Conv(
    features,
    (size, size),
    strides=stride,
    padding=size // 2,
    use_bias=False,
    kernel_init=nn.initializers.he_normal(),
    name=name,
  )


class FixedNorm(nn.Module):
  """BatchNorm at inference: a scale and a bias per channel."""

  @nn.compact
  def __call__(self, x: Map) -> Map:
    shape = x.shape[-1:]
    scale = self.param("scale", nn.initializers.ones, shape)
    bias = self.param("bias", nn.initializers.zeros, shape)
    return x * scale[None, None, None] + bias[None, None, None]


class ResidualBlock(nn.Module, kw_only=True):
  """Adds two 3x3 convolutions, or a bottleneck (1x1, 3x3, 1x1), to its input.

  Args:
    features: the channels of a convolution; the last convolution of a
      bottleneck has four times as many.
    bottleneck: whether the block is a bottleneck.
    stride: the stride of the first 3x3 convolution.
  """

  features: int
  bottleneck: bool
  stride: int = 1

  @nn.compact
  def __call__(self, x: Map) -> Float[Array, "b H W C"]:
    if self.bottleneck:
      layers = (
        (self.features, 1, 1),
        (self.features, 3, self.stride),
        (self.features * EXPANSION, 1, 1),
      )
    else:
      layers = ((self.features, 3, self.stride), (self.features, 3, 1))
    h = x
    for i, (features, size, stride) in enumerate(layers, start=1):
      h = nn.relu(h) if i > 1 else h
      h = convolution(features, size, stride=stride, name=f"conv{i}")(h)
      h = FixedNorm(name=f"bn{i}")(h)
    if x.shape != h.shape:
      x = convolution(
        h.shape[-1], 1, stride=self.stride, name="downsample_conv"
      )(x)
      x = FixedNorm(name="downsample_bn")(x)
    return nn.relu(x + h)


class TorchResNet(nn.Module, kw_only=True):
  """ResNet-18 to ResNet-152. It is not trained; its weights come from a file.

  BatchNorm is folded into a scale and a bias, which is its form at inference.
  So the parameters are its whole state, and `train` has no effect. It cannot be
  trained from its first weights; use `classifier.ResNet` for that.

  Args:
    num_classes: the number of logits.
    depth: 18, 34, 50, 101 or 152.
    stem: "imagenet", a 7x7 convolution of stride 2 and a max-pool of 2; or
      "cifar", a 3x3 convolution and no pooling.
    width: the channels of the first level; each next level doubles them.
  """

  num_classes: SomeClasses
  depth: Annotated[int, Range(18, 152)] = 18
  stem: str = "imagenet"
  width: Channels = 64

  def __post_init__(self):
    super().__post_init__()
    require_known("depth", self.depth, DEPTHS)
    require_known("stem", self.stem, STEMS)
    check_ranges(self)

  @nn.compact
  def __call__(self, x: Image, train: bool) -> Classification:
    """Computes logits and features of images normalised as in its training."""
    size, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
    h = convolution(self.width, size, stride=stride, name="conv1")(x)
    h = nn.relu(FixedNorm(name="bn1")(h))
    if self.stem == "imagenet":
      h = nn.max_pool(h, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    num_blocks, bottleneck = DEPTHS[self.depth]
    for level, number in enumerate(num_blocks):
      for index in range(number):
        h = ResidualBlock(
          features=self.width * 2**level,
          bottleneck=bottleneck,
          stride=2 if level > 0 and index == 0 else 1,
          name=f"layer{level + 1}_{index}",
        )(h)
    features = jnp.mean(h, axis=(1, 2))
    logits = nn.Dense(self.num_classes, name="fc")(features)
    return Classification(logits=logits, features=features)
