"""The two kinds of blocks of a UViT; `uvit.py` has their equations."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from diffdistill.networks.layers import (
  EPSILON,
  EXPANSION,
  Map,
  Norm,
  Vector,
  conv,
  self_attention,
)
from diffdistill.networks.rows import keep_rows


class ConvBlock(nn.Module, kw_only=True):
  """Applies two convolutions.

  If `gives_skip`, it returns the output twice, the second time as a skip.
  """

  gives_skip: bool
  train: bool
  dropout: float
  groups: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Map, embed: Vector, skip: Map | None
  ) -> tuple[Map, Map | None]:
    def norm(name):
      return Norm(groups=self.groups, dtype=self.dtype, name=name)

    x = keep_rows(x)
    h = nn.swish(_join(x, skip, norm))
    h = conv(x.shape[-1], dtype=self.dtype, name="conv1")(h)
    h = nn.swish(norm("norm2")(h, embed))
    h = nn.Dropout(self.dropout)(h, deterministic=not self.train)
    x = x + conv(x.shape[-1], dtype=self.dtype, zero=True, name="conv2")(h)
    return x, x if self.gives_skip else None


class TransformerBlock(nn.Module, kw_only=True):
  """Applies a perceptron, then attention.

  If `gives_skip`, it returns the output twice, the second time as a skip.
  """

  gives_skip: bool
  train: bool
  dropout: float
  head_dim: int
  attention: str
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Map, embed: Vector, skip: Map | None
  ) -> tuple[Map, Map | None]:
    batch, height, width, channels = x.shape

    def norm(name):
      return nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name=name)

    def dense(features, name, **fields):
      return nn.Dense(features, dtype=self.dtype, name=name, **fields)

    x, hidden = keep_rows(x), EXPANSION * channels
    film = dense(2 * hidden, "film")(nn.swish(embed))
    scale, shift = jnp.split(film[:, None, None, :], 2, axis=-1)
    h = dense(hidden, "dense1")(_join(x, skip, norm))
    h = nn.swish(h * (1 + scale) + shift)
    h = nn.Dropout(self.dropout)(h, deterministic=not self.train)
    x = x + dense(channels, "dense2", kernel_init=nn.initializers.zeros)(h)
    h = self_attention(
      norm("norm2")(x).reshape(batch, height * width, channels),
      channels // self.head_dim,
      dtype=self.dtype,
      attention=self.attention,
      norm_qk=True,
      zero=True,
    )
    x = x + h.reshape(x.shape)
    return x, x if self.gives_skip else None


def _join(x: Map, skip: Map | None, norm: Callable) -> Map:
  h = norm("norm1")(x)
  if skip is None:
    return h
  return (h + norm("norm_skip")(skip)) / math.sqrt(2)
