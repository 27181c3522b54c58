"""The parts that several architectures use: norms, attention, resampling.

Parameters are always float32; `dtype` is the type in which a layer computes and
returns. The statistics of norms and the softmax of attention are float32 for
every dtype: they are cheap, and bfloat16 would make them too inexact.
"""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from diffdistill.networks.require import require, require_divisor

Map = Float[Array, "b h w c"]
Tokens = Float[Array, "b n c"]
Vector = Float[Array, "b e"]

# Norms add this number to the variance. It is the default of Flax, and the
# released weights of Salimans & Ho 2022 and of Ho et al. 2020 expect it.
EPSILON = 1e-6
# The width of a transformer's hidden layer, as a multiple of the tokens' width.
EXPANSION = 4


def num_groups(groups: int, channels: int, group_size: int = 2) -> int:
  """The number of groups of a norm, at most the wanted number `groups`.

  It is the largest divisor of the channels that is at most `groups` and gives
  each group at least `group_size` channels. A group of one channel would lose
  its mean. So 32 remains 32 for 64, 96, ... channels, as in the papers'
  networks.
  """
  limit = max(1, min(groups, channels // group_size))
  return next(n for n in range(limit, 0, -1) if channels % n == 0)


class Norm(nn.Module, kw_only=True):
  """GroupNorm with as many groups as `num_groups` allows.

  With an embedding, its result is also scaled and shifted (adaptive norm,
  FiLM): h = norm(x) (1 + scale) + shift with (scale, shift) =
  Dense(swish(embed)).
  """

  groups: int = 32
  group_size: int = 2
  epsilon: float = EPSILON
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Map, embed: Vector | None = None) -> Map:
    channels = x.shape[-1]
    groups = num_groups(self.groups, channels, self.group_size)
    h = nn.GroupNorm(groups, epsilon=self.epsilon, name="norm")(x)
    if embed is not None:
      film = nn.Dense(2 * channels, dtype=self.dtype, name="film")
      scale, shift = jnp.split(film(nn.swish(embed))[:, None, None, :], 2, -1)
      h = h * (1 + scale) + shift
    return h.astype(self.dtype)


def conv(
  features: int,
  *,
  name: str,
  dtype: DTypeLike = jnp.float32,
  stride: int = 1,
  padding: str = "same",
  zero: bool = False,
) -> nn.Conv:
  """A 3x3 convolution; `zero` makes its initial kernel zero.

  It pads with zeros. "both" adds one row or column on each side. "same" adds as
  many as give the input's size divided by the stride; for a stride of 2 and
  even sizes, it pads only below and to the right.
  """
  return nn.Conv(
    features,
    (3, 3),
    strides=stride,
    padding={"same": "SAME", "both": 1}[padding],
    dtype=dtype,
    kernel_init=_init(zero),
    name=name,
  )


class Attention(nn.Module, kw_only=True):
  """Residual self-attention over all positions; initially the identity.

  Args:
    num_heads: the number of heads; ignored if head_dim is given.
    head_dim: the channels of one head.
    normalise: whether to normalise the map first.
    groups, group_size, epsilon: the settings of this norm.
    kernel: how attention is computed, see `self_attention`.
  """

  num_heads: int = 1
  head_dim: int | None = None
  normalise: bool = True
  groups: int = 32
  group_size: int = 2
  epsilon: float = EPSILON
  dtype: DTypeLike = jnp.float32
  kernel: str = "xla"

  @nn.compact
  def __call__(self, x: Map) -> Map:
    batch, height, width, channels = x.shape
    name = "num_heads" if self.head_dim is None else "head_dim"
    divisor = self.num_heads if self.head_dim is None else self.head_dim
    require_divisor(name, divisor, channels)
    heads = divisor if self.head_dim is None else channels // divisor
    h = x
    if self.normalise:
      h = Norm(
        groups=self.groups,
        group_size=self.group_size,
        epsilon=self.epsilon,
        dtype=self.dtype,
        name="norm",
      )(x)
    h = h.reshape(batch, height * width, channels)
    h = self_attention(
      h, heads, dtype=self.dtype, attention=self.kernel, zero=True
    )
    return x + h.reshape(x.shape)


def self_attention(
  h: Tokens,
  heads: int,
  *,
  dtype: DTypeLike,
  attention: str = "xla",
  norm_qk: bool = False,
  zero: bool = False,
) -> Tokens:
  """Applies self-attention between two dense layers.

  The layers become parts of the calling module.

  Args:
    h: the normalised tokens; the result is not added to them.
    heads: the number of heads, a divisor of the channels.
    dtype: the dtype of the computation.
    attention: "xla"; "cudnn" for the fused kernel of NVIDIA GPUs, which has no
      forward-mode derivative; or "fused" for that kernel where it can run.
    norm_qk: whether to normalise the queries and keys of each head, which
      bounds the logits.
    zero: whether the initial kernel of the last layer is zero.
  """
  batch, length, channels = h.shape
  # One layer computes queries, keys and values. The shape of its kernel is
  # (c, 3, heads, c / heads).
  qkv = nn.DenseGeneral((3, heads, channels // heads), dtype=dtype, name="qkv")(
    h
  )
  q, k, v = (qkv[:, :, i] for i in range(3))
  if norm_qk:
    norm = functools.partial(nn.LayerNorm, epsilon=EPSILON, dtype=dtype)
    q = norm(name="norm_q")(q)
    # Keys need no bias, because it would not change the softmax.
    k = norm(name="norm_k", use_bias=False)(k)
  h = {"xla": _XLA, "cudnn": _CUDNN, "fused": _fused}[attention](q, k, v)
  return nn.Dense(channels, dtype=dtype, kernel_init=_init(zero), name="out")(
    h.reshape(batch, length, channels)
  )


def _attend(
  implementation: Literal["xla", "cudnn"], q: Array, k: Array, v: Array
) -> Array:
  return jax.nn.dot_product_attention(q, k, v, implementation=implementation)


_XLA = functools.partial(_attend, "xla")
_CUDNN = functools.partial(_attend, "cudnn")


def _fused(q: Array, k: Array, v: Array) -> Array:
  """Attention by cuDNN on NVIDIA GPUs, and by XLA on other platforms."""
  try:
    return jax.lax.platform_dependent(q, k, v, cuda=_CUDNN, default=_XLA)
  except RuntimeError:
    # JAX raises this without cuDNN, or for heads that its kernel does not take.
    return _XLA(q, k, v)


def upsample(x: Map) -> Float[Array, "b 2*h 2*w c"]:
  """Repeats every pixel in a 2x2 block (nearest neighbour)."""
  b, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
  return x.reshape(b, 2 * h, 2 * w, c)


def downsample(x: Map) -> Float[Array, "b h//2 w//2 c"]:
  """Averages each 2x2 block of pixels; height and width must be even."""
  b, h, w, c = x.shape
  return jnp.mean(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))


def fold(x: Map, patch: int) -> Float[Array, "b H W C"]:
  """Turns every patch x patch block of pixels into one pixel's channels."""
  b, h, w, c = x.shape
  require(
    h % patch == 0 and w % patch == 0,
    f"images of {h}x{w} do not divide into patches of {patch}; pass a patch"
    " that divides both sides",
  )
  x = x.reshape(b, h // patch, patch, w // patch, patch, c)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h // patch, w // patch, patch * patch * c)


def unfold(x: Map, patch: int) -> Float[Array, "b H W C"]:
  """The inverse of `fold`."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, patch, patch, c // patch**2)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h * patch, w * patch, c // patch**2)


class StridedDown(nn.Module, kw_only=True):
  """Halves the resolution by a convolution of stride 2 (Ho et al. 2020).

  Args:
    padding: "same" or "both", see `conv`.
  """

  padding: str = "same"
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Map) -> Float[Array, "b h//2 w//2 c"]:
    return conv(
      x.shape[-1],
      stride=2,
      padding=self.padding,
      dtype=self.dtype,
      name="conv",
    )(x)


class NearestUp(nn.Module, kw_only=True):
  """Doubles the resolution by nearest neighbour, then applies a convolution."""

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Map) -> Float[Array, "b 2*h 2*w c"]:
    return conv(x.shape[-1], dtype=self.dtype, name="conv")(upsample(x))


def _init(zero: bool):
  zeros, default = nn.initializers.zeros, nn.initializers.lecun_normal()
  return zeros if zero else default
