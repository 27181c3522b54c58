"""The network that defines FID, KID and the inception score.

It is Inception-v3 (Szegedy et al. 2016) as TensorFlow published it on
2015-12-05, with 1008 logits. Heusel et al. 2017 measured with it, and
pytorch-fid has the same weights. It differs from the Inception-v3 of today's
libraries: its average pools do not count the padding, and its last block has a
max pool in place of an average pool.

Unlike TensorFlow's graph, and like pytorch-fid, it resizes images to 299x299
with half-pixel centres, and it maps a byte x to (x - 127.5) / 127.5. The graph
maps it to (x - 128) / 128.

The logits do not include the bias of the last layer, nor do the inception
scores that papers print: the code of Salimans et al. 2016 multiplies the pooled
features by the weights alone, and torch-fidelity does the same.

Modules are named as in torchvision, so that weights are found by name.
"""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import Image
from diffdistill.networks.classifier import Classification, LinenClassifier
from diffdistill.networks.layers import Map
from diffdistill.networks.require import require
from diffdistill.networks.resnet import FixedNorm

FEATURES = 2048
LOGITS = 1008
SIDE = 299
# Each evaluation result records this text: how images were resized.
RESIZER = "bilinear to 299x299, half-pixel centres, no antialiasing"

Output = Float[Array, "b H W C"]
# A convolution: its name, channels, kernel size (a number if square), stride.
# Layers of stride 1 keep the size of the map; layers of stride 2 do not pad.
Layer = tuple[str, int, int | tuple[int, int], int]


def inception(image_shape: tuple[int, int, int]) -> LinenClassifier:
  """The FID network for images in [-1, 1] of any size, grey or RGB.

  Its features are the 2048 float32 outputs of the last pool. Run it at the
  highest matmul precision, as `evaluation.features` does.

  Args:
    image_shape: (h, w, c), where c is 1 or 3.
  """
  require(
    image_shape[-1] in (1, 3),
    f"images have shape {image_shape}, but Inception sees 3 channels, or 1"
    " repeated; pass grey or RGB images",
  )
  return LinenClassifier(module=InceptionV3(), image_shape=image_shape)


def prepare(x: Image) -> Float[Array, "b 299 299 3"]:
  """Resizes images in [-1, 1] to 299x299, and makes grey ones RGB.

  The result equals torch's F.interpolate(mode="bilinear",
  align_corners=False): larger images are sampled without antialiasing.
  """
  batch, _, _, channels = x.shape
  shape = (batch, SIDE, SIDE, channels)
  x = jax.image.resize(x, shape, "bilinear", antialias=False)
  return jnp.broadcast_to(x, (*shape[:-1], 3))


class Convolution(nn.Module, kw_only=True):
  """A convolution without bias, BatchNorm at inference and a ReLU.

  Args:
    features: channels of the output.
    sides: the (height, width) of the kernel.
    stride: the stride in both directions.
    padding: "SAME" or "VALID".
  """

  features: int
  sides: tuple[int, int]
  stride: int = 1
  padding: Literal["SAME", "VALID"] = "SAME"

  @nn.compact
  def __call__(self, x: Map) -> Output:
    x = nn.Conv(
      self.features,
      self.sides,
      strides=self.stride,
      padding=self.padding,
      use_bias=False,
      name="conv",
    )(x)
    return nn.relu(FixedNorm(name="bn")(x))


def chain(x: Map, *layers: Layer) -> Output:
  """Applies convolutions in order; they become parts of the calling module."""
  for name, features, side, stride in layers:
    x = Convolution(
      features=features,
      sides=(side, side) if isinstance(side, int) else side,
      stride=stride,
      padding="SAME" if stride == 1 else "VALID",
      name=name,
    )(x)
  return x


def average_pool(x: Map) -> Output:
  """Averages 3x3 neighbours; at the border, only those inside the map."""
  return nn.avg_pool(
    x, (3, 3), strides=(1, 1), padding="SAME", count_include_pad=False
  )


def max_pool(x: Map, stride: int) -> Output:
  """Takes the largest of 3x3 neighbours."""
  padding = "SAME" if stride == 1 else "VALID"
  return nn.max_pool(x, (3, 3), strides=(stride, stride), padding=padding)


class BlockA(nn.Module, kw_only=True):
  """Joins branches of 1x1, 5x5, two 3x3 convolutions and a pool, on 35x35 maps.

  Args:
    pool_features: the channels after the pool.
  """

  pool_features: int

  @nn.compact
  def __call__(self, x: Map) -> Output:
    branches = (
      chain(x, ("branch1x1", 64, 1, 1)),
      chain(x, ("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 1)),
      chain(
        x,
        ("branch3x3dbl_1", 64, 1, 1),
        ("branch3x3dbl_2", 96, 3, 1),
        ("branch3x3dbl_3", 96, 3, 1),
      ),
      chain(average_pool(x), ("branch_pool", self.pool_features, 1, 1)),
    )
    return jnp.concatenate(branches, axis=-1)


class BlockB(nn.Module):
  """Reduces 35x35 maps to 17x17 by joined convolutions and a max pool."""

  @nn.compact
  def __call__(self, x: Map) -> Output:
    branches = (
      chain(x, ("branch3x3", 384, 3, 2)),
      chain(
        x,
        ("branch3x3dbl_1", 64, 1, 1),
        ("branch3x3dbl_2", 96, 3, 1),
        ("branch3x3dbl_3", 96, 3, 2),
      ),
      max_pool(x, 2),
    )
    return jnp.concatenate(branches, axis=-1)


class BlockC(nn.Module, kw_only=True):
  """Joins branches of 1x1, 7x7, two 7x7 convolutions and a pool, on 17x17 maps.

  Each 7x7 convolution is a 1x7 and a 7x1 convolution, one after the other.

  Args:
    width: the number of channels between the 1x7 and 7x1 convolutions.
  """

  width: int

  @nn.compact
  def __call__(self, x: Map) -> Output:
    row, column, width = (1, 7), (7, 1), self.width
    branches = (
      chain(x, ("branch1x1", 192, 1, 1)),
      chain(
        x,
        ("branch7x7_1", width, 1, 1),
        ("branch7x7_2", width, row, 1),
        ("branch7x7_3", 192, column, 1),
      ),
      chain(
        x,
        ("branch7x7dbl_1", width, 1, 1),
        ("branch7x7dbl_2", width, column, 1),
        ("branch7x7dbl_3", width, row, 1),
        ("branch7x7dbl_4", width, column, 1),
        ("branch7x7dbl_5", 192, row, 1),
      ),
      chain(average_pool(x), ("branch_pool", 192, 1, 1)),
    )
    return jnp.concatenate(branches, axis=-1)


class BlockD(nn.Module):
  """Reduces 17x17 maps to 8x8 by joined convolutions and a max pool."""

  @nn.compact
  def __call__(self, x: Map) -> Output:
    branches = (
      chain(x, ("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 2)),
      chain(
        x,
        ("branch7x7x3_1", 192, 1, 1),
        ("branch7x7x3_2", 192, (1, 7), 1),
        ("branch7x7x3_3", 192, (7, 1), 1),
        ("branch7x7x3_4", 192, 3, 2),
      ),
      max_pool(x, 2),
    )
    return jnp.concatenate(branches, axis=-1)


class BlockE(nn.Module, kw_only=True):
  """Joins branches of 1x1, 3x3, two 3x3 convolutions and a pool, on 8x8 maps.

  The last 3x3 convolution of a branch is a 1x3 and a 3x1 convolution, whose
  outputs are concatenated.

  Args:
    pool: "average" or "max".
  """

  pool: Literal["average", "max"]

  @nn.compact
  def __call__(self, x: Map) -> Output:
    row, column = (1, 3), (3, 1)
    single = chain(x, ("branch3x3_1", 384, 1, 1))
    double = chain(
      x, ("branch3x3dbl_1", 448, 1, 1), ("branch3x3dbl_2", 384, 3, 1)
    )
    pooled = average_pool(x) if self.pool == "average" else max_pool(x, 1)
    branches = (
      chain(x, ("branch1x1", 320, 1, 1)),
      chain(single, ("branch3x3_2a", 384, row, 1)),
      chain(single, ("branch3x3_2b", 384, column, 1)),
      chain(double, ("branch3x3dbl_3a", 384, row, 1)),
      chain(double, ("branch3x3dbl_3b", 384, column, 1)),
      chain(pooled, ("branch_pool", 192, 1, 1)),
    )
    return jnp.concatenate(branches, axis=-1)


class InceptionV3(nn.Module):
  """The whole Inception-v3. It is not trained; its weights come from a file."""

  @nn.compact
  def __call__(self, x: Image, train: bool) -> Classification:
    """Computes logits without bias and pooled features of images in [-1, 1]."""
    h = prepare(x)
    # Two layers of the stem do not pad although their stride is 1.
    stem = functools.partial(Convolution, sides=(3, 3), padding="VALID")
    for layer in (
      stem(features=32, stride=2, name="Conv2d_1a_3x3"),
      stem(features=32, name="Conv2d_2a_3x3"),
      stem(features=64, padding="SAME", name="Conv2d_2b_3x3"),
      functools.partial(max_pool, stride=2),
      stem(features=80, sides=(1, 1), name="Conv2d_3b_1x1"),
      stem(features=192, name="Conv2d_4a_3x3"),
      functools.partial(max_pool, stride=2),
      BlockA(pool_features=32, name="Mixed_5b"),
      BlockA(pool_features=64, name="Mixed_5c"),
      BlockA(pool_features=64, name="Mixed_5d"),
      BlockB(name="Mixed_6a"),
      BlockC(width=128, name="Mixed_6b"),
      BlockC(width=160, name="Mixed_6c"),
      BlockC(width=160, name="Mixed_6d"),
      BlockC(width=192, name="Mixed_6e"),
      BlockD(name="Mixed_7a"),
      BlockE(pool="average", name="Mixed_7b"),
      BlockE(pool="max", name="Mixed_7c"),
    ):
      h = layer(h)
    features = jnp.mean(h, axis=(1, 2))
    logits = nn.Dense(LOGITS, use_bias=False, name="fc")(features)
    return Classification(logits=logits, features=features)
