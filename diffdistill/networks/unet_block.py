"""The residual block of the U-Nets of DDPM, improved DDPM and ADM."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from diffdistill.networks.layers import (
  EPSILON,
  Map,
  Norm,
  Vector,
  conv,
  downsample,
  upsample,
)

RESAMPLE = {"down": downsample, "up": upsample, None: lambda x: x}


class ResBlock(nn.Module, kw_only=True):
  """Applies norm, swish, conv, norm, swish, dropout, conv, and adds the input.

  Args:
    features: the channels of the result; None for as many as the input has.
    resample: "down" or "up" to halve or double the resolution, before the first
      convolution and on the skip; None to keep it.
    style: "film" or "ddpm": how the embedding enters; see `unet.py`.
  """

  features: int | None = None
  resample: str | None = None
  style: str = "film"
  dropout: float = 0.0
  groups: int = 32
  group_size: int = 2
  epsilon: float = EPSILON
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Map, embed: Vector, train: bool
  ) -> Float[Array, "b H W C"]:
    features = self.features or x.shape[-1]
    resample = RESAMPLE[self.resample]
    norm1, norm2 = (
      Norm(
        groups=self.groups,
        group_size=self.group_size,
        epsilon=self.epsilon,
        dtype=self.dtype,
        name=name,
      )
      for name in ("norm1", "norm2")
    )
    h = resample(nn.swish(norm1(x)))
    h = conv(features, dtype=self.dtype, name="conv1")(h)
    if self.style == "film":
      h = norm2(h, embed)
    else:
      add = nn.Dense(features, dtype=self.dtype, name="embed")
      h = norm2(h + add(nn.swish(embed))[:, None, None, :])
    h = nn.Dropout(self.dropout)(nn.swish(h), deterministic=not train)
    h = conv(features, dtype=self.dtype, zero=True, name="conv2")(h)
    skip = resample(x)
    if skip.shape[-1] != features:
      skip = nn.Dense(features, dtype=self.dtype, name="skip")(skip)
    return skip + h
