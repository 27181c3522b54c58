"""The U-Nets of Song et al. 2021 (score SDE), in Karras et al. 2022's form.

The fields select DDPM++ (the default), NCSN++ or a mixture of their parts:

             DDPM++        NCSN++
  embedding  "positional"  "fourier"
  encoder    "standard"    "residual"
  taps       (1, 1)        (1, 3, 3, 1)

Each block, each attention and each residual of the encoder is scaled by
sqrt(1/2), which keeps the variance. Residual blocks change the resolution, with
a filter of the given taps.

Unlike the paper, a class enters as its one-hot vector, without a factor
sqrt(num_classes). Unlike the paper, initial weights are LeCun-normal, but those
of the last layer of each block and of the network are zero, so the initial
output is exactly zero.

Names of parameters: conv_in, embed, down_I_block_J, down_I_attention_J,
down_I_resample, down_I_auxiliary, middle_block_1, middle_attention,
middle_block_2, up_I_* likewise, up_I_norm_out, up_I_conv_out; I is the level,
0 the finest.

Features: down_I and up_I, the last maps of level I before the resolution
changes, and middle, the last map of the middle.
"""

from typing import Annotated, cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import Image, Label, Time
from diffdistill.networks.embeddings import SongEmbedding
from diffdistill.networks.features import keep, levels_of
from diffdistill.networks.layers import (
  Attention,
  Map,
  Norm,
  Vector,
  conv,
)
from diffdistill.networks.remat import policy_of, rematerialised
from diffdistill.networks.require import (
  require,
  require_even,
  require_known,
  require_levels,
  require_multipliers,
  require_precision,
)
from diffdistill.networks.song_block import (
  GROUP_SIZE,
  SCALE,
  SongBlock,
  filtered_down,
  filtered_up,
)
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

EMBEDDINGS = ("positional", "fourier")
ENCODERS = ("standard", "residual", "skip")
DECODERS = ("standard", "skip")


# The arguments of every block: the embedding, and `train`.
Told = tuple[Vector, bool]


class SongUNet(nn.Module, kw_only=True):
  """DDPM++ or NCSN++, a network that reads x_t and its noise level.

  The noise level is 1000 t, where t is c_noise of `EDMPrecondition`.

  Args:
    channels: the channels of the first convolution; even, 4 or more.
    multipliers: the factor of the channels at each level; each level but the
      first halves the image.
    num_blocks: the number of residual blocks of each level on the way down; the
      way up has one more.
    attention: the image heights with attention of one head, which follows each
      block on the way down and the last block on the way up. The middle always
      has attention.
    attention_kernel: "xla"; "cudnn" for the fused kernel of NVIDIA GPUs; or
      "fused" for that kernel where it can run. The kernel computes only in
      bfloat16, and has no forward-mode derivative.
    embed_dim: the size of the embedded noise level and class; None for
      4 * channels.
    embedding: "positional" or "fourier".
    num_waves: the number of sines and cosines of the embedding; even, 4 or
      more; None for `channels`.
    encoder: "standard"; "residual" to add a convolution of the next finer map
      to each coarser map; "skip" to add the shrunk image to it.
    decoder: "standard"; or "skip" to sum an output of each resolution.
    taps: the taps of the filter that changes resolutions, an even number.
    dropout: the dropout rate in training, in [0, 1).
    remat: what the backward pass of each block computes again to save memory:
      "none", "dots" or "all", see `networks/remat.py`.
    dtype: "float32" or "bfloat16", see `UNet`.
    out_channels: the channels of the output.
    num_classes: the number of classes; 0 for an unconditional network.
    two_times: whether the network also reads s, the time a step aims at.
    told_guidance: whether the network also reads w, a guidance weight.
  """

  channels: Waves
  multipliers: tuple[Multiplier, ...]
  num_blocks: Blocks
  out_channels: Channels
  attention: tuple[Side, ...] = ()
  attention_kernel: str = "xla"
  embed_dim: Channels | None = None
  embedding: str = "positional"
  num_waves: Waves | None = None
  encoder: str = "standard"
  decoder: str = "standard"
  taps: tuple[Annotated[int, Range(-1000, 1000)], ...] = (1, 1)
  dropout: Share = 0.0
  remat: bool | str = "none"
  dtype: str = "float32"
  num_classes: Classes = 0
  two_times: bool = False
  told_guidance: bool = False

  def __post_init__(self):
    super().__post_init__()
    for name, known in (
      ("embedding", EMBEDDINGS),
      ("encoder", ENCODERS),
      ("decoder", DECODERS),
    ):
      require_known(name, getattr(self, name), known)
    require_precision(self.dtype, self.attention_kernel, "attention_kernel")
    policy_of(self.remat)
    check_ranges(self)
    require_even("num_waves", self.num_waves or self.channels)
    require_multipliers(self.multipliers)
    require(
      len(self.taps) > 0 and len(self.taps) % 2 == 0 and sum(self.taps) > 0,
      f"taps is {self.taps}; pass an even number of them, as (1, 1)",
    )

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
    """Computes the raw output in float32; 1000 t is the noise level."""
    require_levels(x, len(self.multipliers), self.attention)
    embed = SongEmbedding(
      kind=self.embedding,
      waves=self.num_waves or self.channels,
      embed_dim=self.embed_dim or 4 * self.channels,
      num_classes=self.num_classes,
      two_times=self.two_times,
      told_guidance=self.told_guidance,
      name="embed",
    )(t, label, s, guidance)
    h = conv(self.channels, dtype=self.dtype, name="conv_in")(x)
    h, skips = self._down(h, x, (embed, train), names)
    h = self._block(h, (embed, train), "middle_block_1")
    h = self._attend(h, "middle_attention")
    h = self._block(h, (embed, train), "middle_block_2")
    keep(self, "middle", h, names)
    return self._up(h, skips, (embed, train), names)

  def _down(
    self,
    h: Map,
    small: Float[Array, "b h w D"],
    told: Told,
    names: tuple[str, ...],
  ) -> tuple[Float[Array, "b H W C"], list[Array]]:
    """Returns the coarsest map, and all maps that the way up concatenates.

    Args:
      h: the output of the first convolution.
      small: the image, which the encoder shrinks in parallel with h.
      told: the arguments of every block: the embedding, and `train`.
      names: the features to keep.
    """
    skips = [h]
    for level, multiplier in enumerate(self.multipliers):
      for index in range(self.num_blocks):
        features = multiplier * self.channels
        h = self._block(h, told, f"down_{level}_block_{index}", features)
        if h.shape[1] in self.attention:
          h = self._attend(h, f"down_{level}_attention_{index}")
        skips.append(h)
      keep(self, f"down_{level}", h, names)
      if level != len(self.multipliers) - 1:
        h = self._block(h, told, f"down_{level}_resample", resample="down")
        if self.encoder != "standard":
          h, small = self._auxiliary(h, small, f"down_{level}_auxiliary")
        skips.append(h)
    return h, skips

  def _up(
    self, h: Map, skips: list[Array], told: Told, names: tuple[str, ...]
  ) -> Float[Array, "b H W out"]:
    """Returns the output; uses the skips from the last to the first."""
    out: Map | None = None
    for level, multiplier in reversed(list(enumerate(self.multipliers))):
      for index in range(self.num_blocks + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        features = multiplier * self.channels
        h = self._block(h, told, f"up_{level}_block_{index}", features)
      if h.shape[1] in self.attention:
        h = self._attend(h, f"up_{level}_attention_{self.num_blocks}")
      keep(self, f"up_{level}", h, names)
      if level == 0 or self.decoder == "skip":
        # Compute in float32: rounding to bfloat16 would add noise to the
        # output.
        norm = Norm(group_size=GROUP_SIZE, name=f"up_{level}_norm_out")
        layer = conv(self.out_channels, zero=True, name=f"up_{level}_conv_out")
        update = layer(nn.swish(norm(h)))
        out = update if out is None else update + filtered_up(out, self.taps)
      if level != 0:
        h = self._block(h, told, f"up_{level}_resample", resample="up")
    return cast(Array, out)

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
    kind = rematerialised(SongBlock, self.remat, static_argnums=(3,))
    return kind(
      features=features,
      resample=resample,
      taps=self.taps,
      dropout=self.dropout,
      dtype=self.dtype,
      name=name,
    )(h, *told)

  def _attend(self, h: Map, name: str) -> Map:
    kind = rematerialised(Attention, self.remat)
    layer = kind(
      group_size=GROUP_SIZE,
      dtype=self.dtype,
      kernel=self.attention_kernel,
      name=name,
    )
    return SCALE * layer(h)

  def _auxiliary(
    self, h: Map, small: Float[Array, "b H W C"], name: str
  ) -> tuple[Map, Float[Array, "b h w D"]]:
    """Returns h plus the encoder's map, and the next level's encoder map.

    The convolution of the "residual" encoder pads for the filter too, since
    padding between the two would change the values at the border.
    """
    features, dtype = h.shape[-1], self.dtype
    if self.encoder == "residual":
      side = len(self.taps) // 2
      layer = nn.Conv(features, (3, 3), padding=side, dtype=dtype, name=name)
      h = SCALE * (h + filtered_down(layer(small), self.taps, pad=0))
      return h, h
    small = filtered_down(small, self.taps)
    return h + nn.Dense(features, dtype=dtype, name=name)(small), small
