"""The residual block of DDPM++ and NCSN++, and the filters that resample."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from diffdistill.networks.layers import Map, Norm, Vector, conv

GROUP_SIZE = 4  # the smallest number of channels in a norm's group
SCALE = math.sqrt(0.5)
Taps = tuple[int | float, ...]


def filtered_down(
  x: Map, taps: Taps, pad: int | None = None
) -> Float[Array, "b H W c"]:
  """Filters along rows and columns, and keeps every other pixel of each.

  Args:
    x: an image.
    taps: the taps of the filter, an even number of them. The filter divides
      them by their sum.
    pad: how many zeros to add around the image; by default so many that the
      result is half as large.
  """
  if pad is None:
    pad = len(taps) // 2 - 1
  for axis in (1, 2):
    x = _correlate(x, taps, axis, (pad, pad, 0), stride=2)
  return x


def filtered_up(x: Map, taps: Taps) -> Float[Array, "b 2*h 2*w c"]:
  """The transpose of `filtered_down`, times four, so that the mean is kept."""
  pad = len(taps) // 2
  for axis in (1, 2):
    # The padding puts a zero between neighbours, so a factor of 2 in each
    # direction keeps the mean.
    x = 2 * _correlate(x, taps[::-1], axis, (pad, pad, 1), stride=1)
  return x


def _correlate(
  x: Map, taps: Taps, axis: int, pad: tuple[int, int, int], stride: int
) -> Float[Array, "b H W c"]:
  """Correlates by a sum of shifted slices, which compiles to one loop."""
  pads = [(0, 0, 0)] * 4
  pads[axis] = pad
  x = lax.pad(x, jnp.zeros((), x.dtype), pads)
  length = x.shape[axis] - len(taps) + 1
  h = jnp.zeros((), x.dtype)
  for i, tap in enumerate(taps):
    part = lax.slice_in_dim(x, i, i + length, stride=stride, axis=axis)
    h = h + tap / sum(taps) * part
  return h


class SongBlock(nn.Module, kw_only=True):
  """The residual block of DDPM++ and NCSN++.

  It applies norm, swish and conv, adds dense(embed), and then applies norm,
  swish, dropout and conv. It multiplies the sum of the result and the input by
  sqrt(1/2).

  Args:
    features: the channels of the result; None for as many as the input has.
    resample: "down" or "up" to halve or double the resolution, before the first
      convolution and on the skip; None to keep it.
    taps: the taps of the filter that resamples.
  """

  features: int | None = None
  resample: str | None = None
  taps: Taps = (1, 1)
  dropout: float = 0.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Map, embed: Vector, train: bool
  ) -> Float[Array, "b H W C"]:
    features = self.features or x.shape[-1]
    norm1, norm2 = (
      Norm(group_size=GROUP_SIZE, dtype=self.dtype, name=name)
      for name in ("norm1", "norm2")
    )
    h = self._resample(nn.swish(norm1(x)))
    h = conv(features, dtype=self.dtype, name="conv1")(h)
    add = nn.Dense(features, dtype=self.dtype, name="embed")(embed)
    h = nn.swish(norm2(h + add[:, None, None, :]))
    h = nn.Dropout(self.dropout)(h, deterministic=not train)
    h = conv(features, dtype=self.dtype, zero=True, name="conv2")(h)
    skip = self._resample(x)
    if self.resample or skip.shape[-1] != features:
      skip = nn.Dense(features, dtype=self.dtype, name="skip")(skip)
    return SCALE * (skip + h)

  def _resample(self, x: Map) -> Float[Array, "b H W c"]:
    if self.resample is None:
      return x
    way = {"down": filtered_down, "up": filtered_up}[self.resample]
    return way(x, self.taps)
