"""The U-Net of DDPM, improved DDPM and ADM, in two styles.

  style    noise level enters by      resampling if the field is None
  "film"   scale and shift of norms   a residual block (BigGAN)
  "ddpm"   addition after conv1       strided conv down, nearest + conv up

"film" is the network of Salimans & Ho 2022 (released code). "ddpm" is the
network of Ho et al. 2020 and Song et al. 2021 (DDIM), and of papers that start
from their weights. The fields after two_times exist for published weights of
other authors; their defaults change nothing. Unlike Ho et al., the initial
weights are LeCun-normal and the last layers exactly zero in both styles, so the
initial output is exactly zero.

Names of parameters: conv_in, embed, down_I_block_J, down_I_attention_J,
down_I_resample, middle_block_1, middle_attention, middle_block_2, up_I_*
likewise, norm_out, conv_out; I is the level, 0 the finest.

Features: down_I and up_I, the last maps of level I before the resolution
changes, and middle, the last map of the middle.
"""

from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import Image, Label, Time
from diffdistill.networks.embeddings import Embedding
from diffdistill.networks.features import keep, levels_of
from diffdistill.networks.layers import (
  EPSILON,
  Attention,
  Map,
  NearestUp,
  Norm,
  StridedDown,
  Vector,
  conv,
  fold,
  unfold,
)
from diffdistill.networks.remat import policy_of, rematerialised
from diffdistill.networks.require import (
  require_even,
  require_known,
  require_levels,
  require_multipliers,
  require_precision,
)
from diffdistill.networks.unet_block import ResBlock
from diffdistill.ranges import (
  Blocks,
  Channels,
  Classes,
  Multiplier,
  Range,
  Share,
  Side,
  Waves,
  check_ranges,
)

# How each style changes the resolution if `resampling` is None.
STYLES = {"film": "block", "ddpm": "conv"}
RESAMPLING = (None, "block", "conv")
PADDING = ("same", "both")
MIDDLE = ("attention", "bare_attention", "blocks")

# The arguments of every block: the embedding, and `train`.
Told = tuple[Vector, bool]


class UNet(nn.Module, kw_only=True):
  """A U-Net, which reads x_t, of any height and width, and its noise level.

  Args:
    channels: the channels of the first convolution; even, 4 or more.
    multipliers: the factor of the channels at each level; each level but the
      first halves the image.
    num_blocks: the number of residual blocks of each level on the way down; the
      way up has one more.
    patch: the side of pixel blocks, folded into channels before the first
      convolution and unfolded after the last (Hoogeboom et al. 2023, simple
      diffusion, section 3.3); levels, attention and divisibility then count
      in patches. 1 for none.
    attention: the image heights at which attention follows each block. The
      middle has attention too, unless `middle` says otherwise.
    attention_kernel: "xla"; "cudnn" for the fused kernel of NVIDIA GPUs; or
      "fused" for that kernel where it can run. The kernel computes only in
      bfloat16, and has no forward-mode derivative.
    num_heads: the heads of attention; ignored if head_dim is given.
    head_dim: the channels of one head.
    embed_dim: the size of the embedded noise level and class; None for
      4 * channels.
    dropout: the dropout rate in training, in [0, 1).
    style: "film" or "ddpm", see the top of this file.
    remat: what the backward pass of each block computes again to save memory:
      "none", "dots" or "all", see `networks/remat.py`.
    dtype: "float32" or "bfloat16", the dtype of the computation. Parameters,
      the statistics of norms, softmax, the embedding, the last convolution and
      the output are always float32.
    groups: the groups of each norm; fewer if the channels do not allow so many,
      see `layers.num_groups`.
    out_channels: the channels of the output.
    num_classes: the number of classes; 0 for an unconditional network.
    two_times: whether the network also reads s, the time a step aims at.
    told_guidance: whether the network also reads w, a guidance weight.
    resampling: "block" for a residual block; "conv" for a strided convolution
      on the way down, and a convolution after nearest neighbours on the way up;
      None for the style's own.
    padding: how the strided convolution pads: "same" (one row and column of
      zeros, below and to the right) or "both" (one on every side).
    middle: "attention" for attention between the two blocks of the middle;
      "bare_attention" for attention without a norm; "blocks" for no attention.
    group_size: the smallest number of channels in a norm's group.
    epsilon: the number that norms add to the variance.
    sinusoid_dim: the size of the sinusoid; even, 4 or more; None for
      `channels`.
    cos_first: whether cosines come before sines in the sinusoid.
    frequency_shift: 1 if the last frequency of the sinusoid is exactly 1e-4 of
      its first; 0 if only the frequency after the last would be.

  Raises:
    ValueError: if a field is out of its range; or, when called, if the
      levels do not divide the image or an attention height does not occur.
  """

  channels: Waves
  multipliers: tuple[Multiplier, ...]
  num_blocks: Blocks
  out_channels: Channels
  patch: Side = 1
  attention: tuple[Side, ...] = ()
  attention_kernel: str = "xla"
  num_heads: Channels = 1
  head_dim: Channels | None = None
  embed_dim: Channels | None = None
  dropout: Share = 0.0
  style: str = "film"
  remat: bool | str = "none"
  dtype: str = "float32"
  groups: Channels = 32
  num_classes: Classes = 0
  two_times: bool = False
  told_guidance: bool = False
  resampling: str | None = None
  padding: str = "same"
  middle: str = "attention"
  group_size: Channels = 2
  epsilon: Annotated[float, Range(0, 10, "least")] = EPSILON
  sinusoid_dim: Waves | None = None
  cos_first: bool = False
  frequency_shift: Annotated[int, Range(0, 1)] = 1

  def __post_init__(self):
    super().__post_init__()
    for name, known in (
      ("style", STYLES),
      ("resampling", RESAMPLING),
      ("padding", PADDING),
      ("middle", MIDDLE),
    ):
      require_known(name, getattr(self, name), known)
    require_precision(self.dtype, self.attention_kernel, "attention_kernel")
    policy_of(self.remat)
    check_ranges(self)
    require_even("channels", self.channels)
    require_even("sinusoid_dim", self.sinusoid_dim or self.channels)
    require_multipliers(self.multipliers)

  @property
  def features(self) -> tuple[str, ...]:
    """The names of the features, from input to output."""
    return levels_of(len(self.multipliers))

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
    """Computes the raw output in float32; t is the noise level in [0, 1]."""
    x = fold(x, self.patch)
    require_levels(x, len(self.multipliers), self.attention)
    embed = Embedding(
      dim=self.sinusoid_dim or self.channels,
      embed_dim=self.embed_dim or 4 * self.channels,
      num_classes=self.num_classes,
      cos_first=self.cos_first,
      shift=self.frequency_shift,
      two_times=self.two_times,
      told_guidance=self.told_guidance,
      name="embed",
    )(t, label, s, guidance)
    h = conv(self.channels, dtype=self.dtype, name="conv_in")(x)
    h, skips = self._down(h, (embed, train), names)
    h = self._middle(h, (embed, train))
    keep(self, "middle", h, names)
    h = self._up(h, skips, (embed, train), names)
    # Compute in float32 from here: rounding to bfloat16 would add noise to the
    # output.
    h = nn.swish(Norm(name="norm_out", **self._norms)(h))
    channels = self.out_channels * self.patch**2
    return unfold(conv(channels, zero=True, name="conv_out")(h), self.patch)

  def _down(
    self, h: Map, told: Told, names: tuple[str, ...]
  ) -> tuple[Float[Array, "b H W C"], list[Array]]:
    """Returns the coarsest map, and all maps that the way up concatenates."""
    skips = [h]
    for level, multiplier in enumerate(self.multipliers):
      for index in range(self.num_blocks):
        features = multiplier * self.channels
        h = self._stage(h, told, f"down_{level}", index, features)
        skips.append(h)
      keep(self, f"down_{level}", h, names)
      if level != len(self.multipliers) - 1:
        h = self._resample(h, told, "down", f"down_{level}_resample")
        skips.append(h)
    return h, skips

  def _middle(self, h: Map, told: Told) -> Map:
    h = self._block(h, told, "middle_block_1")
    if self.middle != "blocks":
      h = self._attend(h, "middle_attention", self.middle == "attention")
    return self._block(h, told, "middle_block_2")

  def _up(
    self, h: Map, skips: list[Array], told: Told, names: tuple[str, ...]
  ) -> Float[Array, "b H W C"]:
    """Returns the finest map; uses the skips from the last to the first."""
    for level, multiplier in reversed(list(enumerate(self.multipliers))):
      for index in range(self.num_blocks + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        features = multiplier * self.channels
        h = self._stage(h, told, f"up_{level}", index, features)
      keep(self, f"up_{level}", h, names)
      if level != 0:
        h = self._resample(h, told, "up", f"up_{level}_resample")
    return h

  def _stage(
    self, h: Map, told: Told, name: str, index: int, features: int
  ) -> Float[Array, "b H W C"]:
    """Applies a block, then attention if maps of this height have it."""
    h = self._block(h, told, f"{name}_block_{index}", features=features)
    if h.shape[1] in self.attention:
      h = self._attend(h, f"{name}_attention_{index}")
    return h

  def _resample(
    self, h: Map, told: Told, way: str, name: str
  ) -> Float[Array, "b H W C"]:
    """Doubles or halves the resolution."""
    if (self.resampling or STYLES[self.style]) == "block":
      return self._block(h, told, name, resample=way)
    if way == "up":
      return NearestUp(dtype=self.dtype, name=name)(h)
    down = StridedDown(padding=self.padding, dtype=self.dtype, name=name)
    return down(h)

  def _block(
    self,
    h: Map,
    told: Told,
    name: str,
    features: int | None = None,
    resample: str | None = None,
  ) -> Float[Array, "b H W C"]:
    # Argument 3 of a block (after self) is `train`. It must remain a Python
    # value, so remat may not trace it.
    kind = rematerialised(ResBlock, self.remat, static_argnums=(3,))
    return kind(
      features=features,
      resample=resample,
      style=self.style,
      dropout=self.dropout,
      dtype=self.dtype,
      name=name,
      **self._norms,
    )(h, *told)

  def _attend(self, h: Map, name: str, normalise: bool = True) -> Map:
    kind = rematerialised(Attention, self.remat)
    return kind(
      num_heads=self.num_heads,
      head_dim=self.head_dim,
      normalise=normalise,
      dtype=self.dtype,
      kernel=self.attention_kernel,
      name=name,
      **self._norms,
    )(h)

  @property
  def _norms(self) -> dict[str, Any]:
    """The settings that all norms share."""
    return {
      "groups": self.groups,
      "group_size": self.group_size,
      "epsilon": self.epsilon,
    }
