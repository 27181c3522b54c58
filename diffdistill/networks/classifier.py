"""Classifiers: networks that give pooled features and logits of an image.

Evaluation can measure students by a classifier's features, in place of those of
Inception. In classifier-based feature distillation, a classifier also teaches
students.
"""

import dataclasses
from typing import Annotated, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from diffdistill.arrays import Image, Key, Params
from diffdistill.networks.layers import (
  Map,
  Norm,
  conv,
)
from diffdistill.networks.require import (
  DTYPES,
  require,
  require_known,
  require_multipliers,
)
from diffdistill.ranges import (
  Blocks,
  Channels,
  Multiplier,
  Range,
  Share,
  SomeClasses,
  check_ranges,
)


class Classification(NamedTuple):
  """The outputs of a classifier for each image, in float32.

  The logits are the inputs of the softmax. The features are pooled over the
  image, and the logits are a linear function of them.
  """

  logits: Float[Array, "b k"]
  features: Float[Array, "b f"]


# The normalisations of classifiers' training images, by name. Each has the mean
# and the standard deviation of each channel of images in [0, 1]. "signed" gives
# images in [-1, 1], the range of all images in this package.
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
  "signed": ((0.5,), (0.5,)),
  # Most public CIFAR-10 classifiers use these (kuangliu/pytorch-cifar). Each
  # deviation is the mean of the deviations of single images; the deviations of
  # all pixels together are 0.247, 0.2435, 0.2616.
  "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
  # torchvision's ImageNet classifiers use these.
  "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinenClassifier:
  """A classifier, without weights, that calls a Linen `module(x, train)`.

  It takes images in [-1, 1], and normalises and resizes them as the module
  expects.

  Args:
    module: the Linen module. It takes x of shape `b h w c` and a bool `train`,
      which turns dropout on, and returns a `Classification`.
    image_shape: (h, w, c) of the images.
    normalisation: how the module's input is normalised, a name of
      `NORMALISATIONS`.
    resize: the height and width of the module's input; 0 keeps those of the
      image. The interpolation is bilinear. Unlike the code of Sun et al. 2023,
      it does not align corners.
  """

  module: nn.Module
  image_shape: tuple[int, int, int]
  normalisation: str = "signed"
  resize: Annotated[int, Range(0, 4096)] = 0

  def __post_init__(self):
    require_known("normalisation", self.normalisation, NORMALISATIONS)
    mean, _ = NORMALISATIONS[self.normalisation]
    require(
      len(mean) in (1, self.image_shape[-1]),
      f"normalisation is {self.normalisation!r}, of {len(mean)} channels, but"
      f" images have {self.image_shape[-1]}; pass signed or other images",
    )
    check_ranges(self)

  @property
  def unnormalised(self) -> "LinenClassifier":
    """The same classifier, except that its module reads images in [-1, 1].

    The code of Sun et al. 2023 reads images in [-1, 1] even if the module was
    trained on images of another normalisation.
    """
    return dataclasses.replace(self, normalisation="signed")

  def init(self, key: Key) -> Params:
    x = self._prepare(jnp.zeros((1, *self.image_shape)))
    return self.module.init(key, x, False)["params"]

  def apply(
    self, params: Params, x: Image, *, key: Key | None = None
  ) -> Classification:
    if x.shape[1:] != self.image_shape:
      raise ValueError(
        f"images have shape {x.shape[1:]}, but this classifier is for"
        f" {self.image_shape}; resize them or pass its own"
      )
    rngs = None if key is None else {"dropout": key}
    output = self.module.apply(
      {"params": params}, self._prepare(x), key is not None, rngs=rngs
    )
    # Linen's declared result may also hold mutable collections. A classifier
    # has none, so the cast is safe.
    return cast(Classification, output)

  def _prepare(self, x: Image) -> Float[Array, "b H W c"]:
    """Resizes and normalises images in [-1, 1] for the module."""
    # For images in [-1, 1], a mean m becomes 2 m - 1 and a deviation d becomes
    # 2 d. For "signed", these are 0 and 1, which change no bit of x.
    mean, std = map(jnp.asarray, NORMALISATIONS[self.normalisation])
    x = (x - (2 * mean - 1)[None, None, None]) / (2 * std)[None, None, None]
    if self.resize:
      batch, _, _, channels = x.shape
      shape = (batch, self.resize, self.resize, channels)
      x = jax.image.resize(x, shape, "bilinear")
    return x


class PreactivationBlock(nn.Module, kw_only=True):
  """Applies norm, swish, conv, norm, swish, conv, and adds the input.

  He et al. 2016b.
  """

  features: int
  stride: int = 1
  groups: int = 32
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Map) -> Float[Array, "b H W C"]:
    norm1, norm2 = (
      Norm(groups=self.groups, dtype=self.dtype, name=name)
      for name in ("norm1", "norm2")
    )
    h = nn.swish(norm1(x))
    skip = x
    if self.stride != 1 or x.shape[-1] != self.features:
      skip = nn.Dense(self.features, dtype=self.dtype, name="skip")(
        h[:, :: self.stride, :: self.stride]
      )
    h = conv(self.features, stride=self.stride, dtype=self.dtype, name="conv1")(
      h
    )
    h = conv(self.features, dtype=self.dtype, name="conv2")(nn.swish(norm2(h)))
    return skip + h


class ResNet(nn.Module, kw_only=True):
  """A residual network of pre-activation blocks, for images from 8x8 to 64x64.

  Unlike ResNets of the literature, it has GroupNorm in place of BatchNorm.
  There are no running averages: the parameters are its whole state, the result
  for an image does not depend on its batch, and training differs from
  evaluation only in dropout. Swish in place of ReLU keeps the gradient smooth
  in the image.

  Args:
    channels: the number of channels at the first level.
    multipliers: the factor of the channels at each level; each level but the
      first halves the image.
    num_blocks: the number of blocks of each level.
    num_classes: the number of logits.
    dropout: the dropout rate of the features in training, in [0, 1).
    groups: the number of groups of each norm; see `layers.num_groups`.
    dtype: "float32" or "bfloat16", the dtype of the convolutions.
  """

  channels: Channels
  multipliers: tuple[Multiplier, ...]
  num_blocks: Blocks
  num_classes: SomeClasses
  dropout: Share = 0.0
  groups: Channels = 32
  dtype: str = "float32"

  def __post_init__(self):
    super().__post_init__()
    require_known("dtype", self.dtype, DTYPES)
    require_multipliers(self.multipliers)
    check_ranges(self)

  @nn.compact
  def __call__(self, x: Image, train: bool) -> Classification:
    """Computes logits and features of images in [-1, 1]."""
    dtype = jnp.dtype(self.dtype)
    h = conv(self.channels, dtype=dtype, name="conv_in")(x)
    for level, multiplier in enumerate(self.multipliers):
      for index in range(self.num_blocks):
        h = PreactivationBlock(
          features=multiplier * self.channels,
          stride=2 if level > 0 and index == 0 else 1,
          groups=self.groups,
          dtype=dtype,
          name=f"level_{level}_block_{index}",
        )(h)
    h = nn.swish(Norm(groups=self.groups, name="norm_out")(h))
    features = jnp.mean(h, axis=(1, 2))
    h = nn.Dropout(self.dropout)(features, deterministic=not train)
    logits = nn.Dense(self.num_classes, name="logits")(h)
    return Classification(logits=logits, features=features)
