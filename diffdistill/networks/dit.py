"""The diffusion transformer, DiT, with adaLN-Zero (Peebles & Xie 2023).

Each patch of the image becomes a token h, to which a fixed sine-cosine vector
of its position is added. A block, whose norm has no weights, computes

  (shift1, scale1, gate1, shift2, scale2, gate2) = dense(swish(embed))
  h = h + gate1 attention(norm(h) (1 + scale1) + shift1)
  h = h + gate2 mlp(norm(h) (1 + scale2) + shift2)
  mlp(h) = dense(gelu(dense(h)))

The first dense layer of a block starts at zero, so a block is the identity at
first. The last layer starts at zero too, so the initial output is exactly zero.
Only one block is compiled. A scan runs it with the weights of each block.

Positions, embeddings and patches have the same order as in the released
weights.

Unlike the paper's code, the last frequency of the noise level's sinusoid is
exactly 1e-4, as in diffusers, which publishes the weights. In the paper's code
it is just above 1e-4. Unlike the paper, the embedding of a class is a row of a
dense layer, whose bias is added to all classes. Unlike the paper, layers that
do not start at zero start LeCun-normal.

Names of parameters: embed, patches, blocks, film_out, out.

Features: block_JJ is the output of block JJ, as an image with one pixel for
each patch. Block 00 is the first.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from diffdistill.arrays import Image, Label, Time
from diffdistill.networks.embeddings import Embedding
from diffdistill.networks.features import keep
from diffdistill.networks.layers import (
  EPSILON,
  EXPANSION,
  Tokens,
  Vector,
  fold,
  self_attention,
  unfold,
)
from diffdistill.networks.remat import policy_of
from diffdistill.networks.require import (
  require,
  require_divisor,
  require_precision,
)
from diffdistill.networks.rows import in_pieces, keep_rows, scanned
from diffdistill.ranges import Channels, Classes, Depth, Side, check_ranges

SINUSOID = 256  # channels of the sinusoid of the noise level, as in the paper


def positions(height: int, width: int, dim: int) -> Float[Array, "n d"]:
  """Gives the position vector of each patch, row by row.

  The vector has sines and cosines of the column, then of the row. Each of these
  four parts has dim / 4 frequencies, 1e4^(-4 j / dim) for j = 0, 1, ...
  """
  count = dim // 4
  frequency = 1e4 ** (-np.arange(count) / count)
  row, column = np.indices((height, width)).reshape(2, -1, 1) * frequency
  waves = [np.sin(column), np.cos(column), np.sin(row), np.cos(row)]
  return jnp.asarray(np.concatenate(waves, axis=1), jnp.float32)


class Block(nn.Module, kw_only=True):
  """Applies attention, then a perceptron, by the equations of this file."""

  num_heads: int
  attention: str
  dtype: DTypeLike

  @nn.compact
  def __call__(self, h: Tokens, embed: Vector) -> tuple[Tokens, None]:
    width = h.shape[-1]
    h, dense = keep_rows(h), _dense(self.dtype)
    film = dense(6 * width, "film", zero=True)(nn.swish(embed))[:, None, :]
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(film, 6, axis=-1)
    update = self_attention(
      _norm(h, self.dtype) * (1 + scale1) + shift1,
      self.num_heads,
      dtype=self.dtype,
      attention=self.attention,
    )
    h = h + gate1 * update
    update = _norm(h, self.dtype) * (1 + scale2) + shift2
    update = nn.gelu(dense(EXPANSION * width, "dense1")(update))
    return h + gate2 * dense(width, "dense2")(update), None


class DiT(nn.Module, kw_only=True):
  """A DiT, which reads x_t and its noise level.

  Args:
    width: the number of channels of a token; divisible by 4 and by num_heads.
    depth: the number of blocks.
    num_heads: the number of heads of attention.
    patch: the side of the block of pixels that becomes a token.
    attention: "xla"; "cudnn" for the fused kernel of NVIDIA GPUs; or "fused"
      for that kernel where it can run. The kernel computes only in bfloat16,
      and has no forward-mode derivative, which moment matching in parameter
      space needs.
    remat: what the backward pass of each block computes again to save memory:
      "none", "dots" or "all", see `networks/remat.py`.
    dtype: "float32" or "bfloat16", the dtype of the computation. Parameters,
      the statistics of norms, softmax, the embedding, the last layer and the
      output are always float32.
    out_channels: the channels of the output.
    num_classes: the number of classes; 0 for an unconditional network.
    two_times: whether the network also reads s, the time a step aims at.
    told_guidance: whether the network also reads w, a guidance weight.

  Raises:
    ValueError: if a field is out of its range; or, when called, if the patch
      does not divide the image.
  """

  width: Channels
  depth: Depth
  num_heads: Channels
  out_channels: Channels
  patch: Side = 2
  attention: str = "xla"
  remat: bool | str = "none"
  dtype: str = "float32"
  num_classes: Classes = 0
  two_times: bool = False
  told_guidance: bool = False

  def __post_init__(self):
    super().__post_init__()
    require_precision(self.dtype, self.attention)
    policy_of(self.remat)
    check_ranges(self)
    require(self.width % 4 == 0, f"width is {self.width}; pass a multiple of 4")
    require_divisor("num_heads", self.num_heads, self.width)

  @property
  def features(self) -> tuple[str, ...]:
    """The names of the features, from input to output."""
    return tuple(f"block_{index:02d}" for index in range(self.depth))

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
    x = fold(x, self.patch)
    batch, rows, columns, channels = x.shape
    embed = Embedding(
      dim=SINUSOID,
      embed_dim=self.width,
      num_classes=self.num_classes,
      cos_first=True,
      two_times=self.two_times,
      told_guidance=self.told_guidance,
      name="embed",
    )(t, label, s, guidance)
    dtype = jnp.dtype(self.dtype)
    h = x.reshape(batch, rows * columns, channels)
    h = _dense(dtype)(self.width, "patches")(h)
    h = h + positions(rows, columns, self.width)[None].astype(dtype)
    fields = {
      "num_heads": self.num_heads,
      "attention": self.attention,
      "dtype": dtype,
    }
    if names:
      block, weights = Block(**fields, parent=None), self.variables["params"]
      asked = [i for i, name in enumerate(self.features) if name in names]
      h, found = in_pieces(
        block, weights["blocks"], h, embed, asked, remat=self.remat
      )
      for index, tokens in found.items():
        image = tokens.reshape(batch, rows, columns, self.width)
        keep(self, self.features[index], image, names)
    else:
      blocks = scanned(
        Block, self.depth, in_axes=(nn.broadcast,), remat=self.remat
      )
      h, _ = blocks(**fields, name="blocks")(h, embed)

    # Compute in float32 from here: rounding to bfloat16 would add noise to the
    # output.
    dense = _dense(jnp.float32)
    film = dense(2 * self.width, "film_out", zero=True)(nn.swish(embed))
    shift, scale = jnp.split(film[:, None, :], 2, axis=-1)
    h = _norm(h, jnp.float32) * (1 + scale) + shift
    h = dense(self.out_channels * self.patch**2, "out", zero=True)(h)
    return unfold(h.reshape(batch, rows, columns, -1), self.patch)


def _dense(dtype: DTypeLike):
  def dense(features: int, name: str, zero: bool = False) -> nn.Dense:
    init = nn.initializers.zeros if zero else nn.initializers.lecun_normal()
    return nn.Dense(features, dtype=dtype, kernel_init=init, name=name)

  return dense


def _norm(h: Tokens, dtype: DTypeLike) -> Tokens:
  """Normalises each token to mean 0 and variance 1."""
  return nn.LayerNorm(
    epsilon=EPSILON, use_bias=False, use_scale=False, dtype=dtype
  )(h)
