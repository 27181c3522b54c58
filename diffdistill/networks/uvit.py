"""The UViT of simple diffusion: a U-Net whose coarse blocks are transformers.

Hoogeboom et al. 2023, in the stages that Heek et al. 2024 (Multistep
Consistency Models, appendix A.1) list. A stage is a row of equal blocks:

  stage         blocks            on the way down       on the way up
  the finest    ConvBlock         then means of 2x2     nearest neighbour first
  the next      TransformerBlock  likewise              likewise
  the last      TransformerBlock  once, from a learned vector for each position

A block adds these terms to its input x. On the way up its first norm(x) is
(norm(x) + norm(skip)) / sqrt(2), where skip is the output of the block that
mirrors it on the way down:

  ConvBlock         conv(swish(film(norm(conv(swish(norm(x)))))))
  TransformerBlock  dense(swish(film(dense(norm(x))))), and to that sum
                    attention(norm(x)), its queries and keys normalised

with film(h) = h (1 + scale) + shift, (scale, shift) = dense(swish(embed)), for
noise level and class. The blocks of a stage differ in their weights alone, so
only one block is compiled, and a scan runs it.

We have read neither the first paper's appendix nor its authors' code. Other
people's implementations have the sum with the skip, the order of the two terms,
film on the hidden layer, normalised queries and keys, positions only in the
middle, and dense layers beside the resampling. With these and embed_dim 1024,
both networks of Heek et al. have their published 394M and 397M parameters.
[ours]: skips and norms of transformers, head_dim, swish, the sinusoid and the
initial weights. The initial weights are LeCun-normal, but zero in the last
layer of each sum and of the network, so that the initial output is exactly
zero.

Names of parameters: conv_in, embed, down_I, down_I_resample, position, middle,
up_I_resample, up_I, norm_out, conv_out; I is the stage, 0 the finest.

Features: down_I, up_I and middle, the outputs of the rows of these names.
"""

from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import Image, Label, Time
from diffdistill.networks.embeddings import Embedding
from diffdistill.networks.features import keep, levels_of
from diffdistill.networks.layers import (
  Map,
  Norm,
  Vector,
  conv,
  downsample,
  fold,
  unfold,
  upsample,
)
from diffdistill.networks.remat import policy_of
from diffdistill.networks.require import (
  require,
  require_divisor,
  require_precision,
)
from diffdistill.networks.rows import scanned
from diffdistill.networks.uvit_blocks import ConvBlock, TransformerBlock
from diffdistill.ranges import (
  Channels,
  Classes,
  Depth,
  Range,
  Share,
  Side,
  Waves,
  check_ranges,
)


class UViT(nn.Module, kw_only=True):
  """A UViT, which reads x_t and its noise level.

  Args:
    channels: the channels of each stage, 4 or more, the finest stage first;
      each further stage halves the image. The first number is also the size of
      the sinusoid, and even.
    num_blocks: the blocks of each stage on the way down, and also on the way
      up; the last stage is passed only once.
    conv_stages: how many stages have ConvBlocks, from the finest on; the last
      stage never has them.
    patch: the side of pixel blocks, folded into channels before the first
      convolution and unfolded after the last; 1 for none.
    head_dim: the channels of one head of attention.
    embed_dim: the size of the embedded noise level and class; None for
      4 * channels[0].
    dropout: the dropout rate of each stage in training, in [0, 1); () for no
      dropout.
    attention: "xla"; "cudnn" for the fused kernel of NVIDIA GPUs; or "fused"
      for that kernel where it can run. The kernel computes only in bfloat16,
      and has no forward-mode derivative, which moment matching in parameter
      space needs.
    remat: what the backward pass of each block computes again to save memory:
      "none", "dots" or "all", see `networks/remat.py`.
    dtype: "float32" or "bfloat16", the dtype of the computation. Parameters,
      the statistics of norms, softmax, the embedding, the last convolution and
      the output are always float32.
    groups: the groups of the norms of convolutions, see `layers.num_groups`.
    out_channels: the channels of the output.
    num_classes: the number of classes; 0 for an unconditional network.
    two_times: whether the network also reads s, the time a step aims at.
    told_guidance: whether the network also reads w, a guidance weight.

  Raises:
    ValueError: if a field is out of its range; or, when called, if the
      stages do not divide the image.
  """

  channels: tuple[Waves, ...]
  num_blocks: tuple[Depth, ...]
  out_channels: Channels
  conv_stages: Annotated[int, Range(0, 100)] = 1
  patch: Side = 1
  head_dim: Channels = 64
  embed_dim: Channels | None = None
  dropout: tuple[Share, ...] = ()
  attention: str = "xla"
  remat: bool | str = "none"
  dtype: str = "float32"
  groups: Channels = 32
  num_classes: Classes = 0
  two_times: bool = False
  told_guidance: bool = False

  def __post_init__(self):
    super().__post_init__()
    require_precision(self.dtype, self.attention)
    policy_of(self.remat)
    check_ranges(self)
    stages = len(self.channels)
    require(
      stages > 0 and self.channels[0] % 2 == 0,
      f"channels is {self.channels}; pass one number for each stage, the first"
      " even",
    )
    require(
      len(self.num_blocks) == stages,
      f"num_blocks is {self.num_blocks}; pass one number for each of the"
      f" {stages} channels",
    )
    require(
      len(self.dropout) in (0, stages),
      f"dropout is {self.dropout}; pass one number for each of the {stages}"
      " channels, or () for no dropout",
    )
    require(
      self.conv_stages < stages,
      f"conv_stages is {self.conv_stages}; pass 0 to {stages - 1}, as the last"
      " stage has transformers",
    )
    for channels in self.channels[self.conv_stages :]:
      require_divisor("head_dim", self.head_dim, channels)

  @property
  def features(self) -> tuple[str, ...]:
    """The names of the features, from input to output."""
    return levels_of(len(self.channels) - 1)

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
    self._check(x)
    embed = Embedding(
      dim=self.channels[0],
      embed_dim=self.embed_dim or 4 * self.channels[0],
      num_classes=self.num_classes,
      two_times=self.two_times,
      told_guidance=self.told_guidance,
      name="embed",
    )(t, label, s, guidance)
    told = (embed, train)
    h = conv(self.channels[0], dtype=self.dtype, name="conv_in")(x)
    skips = []
    last = len(self.channels) - 1
    for stage in range(last):
      h, skip = self._row(h, told, stage, f"down_{stage}", gives_skip=True)
      skips.append(skip)
      keep(self, f"down_{stage}", h, names)
      h = self._dense(stage + 1, f"down_{stage}_resample")(downsample(h))

    position = self.param(
      "position", nn.initializers.normal(0.01), h.shape[1:], jnp.float32
    )
    h = h + position[None].astype(self.dtype)
    h, _ = self._row(h, told, last, "middle")
    keep(self, "middle", h, names)

    for stage in reversed(range(last)):
      h = upsample(self._dense(stage, f"up_{stage}_resample")(h))
      h, _ = self._row(h, told, stage, f"up_{stage}", skips[stage])
      keep(self, f"up_{stage}", h, names)

    # Compute in float32 from here: rounding to bfloat16 would add noise to the
    # output.
    h = nn.swish(Norm(groups=self.groups, name="norm_out")(h))
    channels = self.out_channels * self.patch**2
    return unfold(conv(channels, zero=True, name="conv_out")(h), self.patch)

  def _row(
    self,
    h: Map,
    told: tuple[Vector, bool],
    stage: int,
    name: str,
    skips: Float[Array, "n b h w c"] | None = None,
    gives_skip: bool = False,
  ) -> tuple[Map, Float[Array, "n b h w c"] | None]:
    """Runs a stage; returns its last output, and each block's output if asked.

    Args:
      h: the input of the first block.
      told: the arguments of every block: the embedding, and `train`.
      stage: the index of the stage; 0 is the finest.
      name: the name of the row's parameters.
      skips: on the way up, the outputs of the row that mirrors this one.
      gives_skip: whether to return the output of each block.
    """
    embed, train = told
    if stage < self.conv_stages:
      kind, fields = ConvBlock, {"groups": self.groups}
    else:
      kind = TransformerBlock
      fields = {"head_dim": self.head_dim, "attention": self.attention}
    row = scanned(
      kind,
      self.num_blocks[stage],
      in_axes=(nn.broadcast, 0),
      remat=self.remat,
      # The first block on the way up is given the last block's skip from the
      # way down.
      reverse=skips is not None,
    )
    return row(
      gives_skip=gives_skip,
      train=train,
      dropout=self.dropout[stage] if self.dropout else 0.0,
      dtype=self.dtype,
      name=name,
      **fields,
    )(h, embed, skips)

  def _dense(self, stage: int, name: str) -> nn.Dense:
    return nn.Dense(self.channels[stage], dtype=self.dtype, name=name)

  def _check(self, x: Image) -> None:
    height, width = x.shape[1:3]
    divisor = 2 ** (len(self.channels) - 1)
    require(
      height % divisor == 0 and width % divisor == 0,
      f"images of {height}x{width} do not halve for each of the"
      f" {len(self.channels)} channels but one; pass sizes divisible by"
      f" {divisor}",
    )
