"""Embeds the times and the label that a network reads in one vector.

The vector encodes the noise level, the class and, for networks of two times,
the time that a step aims at. It is always float32: this is cheap, and the
derivatives in time that jax.jvp computes need this precision.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffdistill.arrays import Label, Time
from diffdistill.networks.layers import Vector
from diffdistill.networks.require import require_label

# The standard deviation of NCSN++'s random frequencies (Song et al. 2021).
FOURIER = 16.0
# `Gap` multiplies t - s by this factor. The value is our own choice.
GAP_SCALE = 10.0


def sinusoid(
  t: Time,
  dim: int,
  *,
  cos_first: bool = False,
  shift: int = 1,
  scale: float = 1000,
) -> Vector:
  """Embeds t as concat(sin, cos) of 1000 t f_j.

  The frequencies are f_j = exp(-ln(1e4) j / (dim/2 - shift)), as in the code of
  Ho et al. 2020. The factor 1000 turns t in [0, 1] into the index of a step;
  `scale` replaces it. Cosines come first and the shift is 0 in the code of
  Dhariwal & Nichol 2021.
  """
  half = dim // 2
  frequency = jnp.exp(-math.log(1e4) * jnp.arange(half) / (half - shift))
  angle = scale * t.astype(jnp.float32)[:, None] * frequency[None, :]
  waves = [jnp.sin(angle), jnp.cos(angle)]
  return jnp.concatenate(waves[::-1] if cos_first else waves, axis=-1)


class Gap(nn.Module, kw_only=True):
  """Embeds the gap t - s between two times in one float32 vector.

  The layers are sinusoid -> Dense -> swish -> Dense. The last layer starts at
  zero, so that adding this part to a trained network of one time does not
  change its output. [ours]: the scale of the sinusoid is 10; a scale of 1000
  would make derivatives in time a hundred times larger and a hundred times less
  exact.

  Args:
    dim: the size of the sinusoid; even, 4 or more.
    embed_dim: the size of the result.
  """

  dim: int
  embed_dim: int

  @nn.compact
  def __call__(self, t: Time, s: Time | None) -> Vector:
    gap = jnp.zeros_like(t) if s is None else t - s
    waves = sinusoid(gap, self.dim, scale=GAP_SCALE)
    h = nn.swish(nn.Dense(self.embed_dim, name="dense1")(waves))
    zeros = nn.initializers.zeros
    return nn.Dense(self.embed_dim, kernel_init=zeros, name="dense2")(h)


class Embedding(nn.Module, kw_only=True):
  """Embeds the noise level and the class in one float32 vector.

  The vector is sinusoid -> Dense -> swish -> Dense, plus Dense(one-hot label),
  plus, for networks of two times, the `Gap` to the time s. A label outside
  [0, num_classes), such as -1, means no class: its one-hot vector is zero.

  Args:
    dim: the size of the sinusoid; even, 4 or more.
    embed_dim: the size of the result.
    num_classes: the number of classes; 0 for a network without labels.
    cos_first, shift: arguments of `sinusoid`.
    two_times: whether the vector depends on s, the time a step aims at.
  """

  dim: int
  embed_dim: int
  num_classes: int = 0
  cos_first: bool = False
  shift: int = 1
  two_times: bool = False

  @nn.compact
  def __call__(
    self, t: Time, label: Label | None, s: Time | None = None
  ) -> Vector:
    require_label(label, self.num_classes)
    waves = sinusoid(t, self.dim, cos_first=self.cos_first, shift=self.shift)
    embed = nn.Dense(self.embed_dim, name="dense1")(waves)
    embed = nn.Dense(self.embed_dim, name="dense2")(nn.swish(embed))
    if label is not None:
      one_hot = jax.nn.one_hot(label, self.num_classes)
      embed = embed + nn.Dense(self.embed_dim, name="label")(one_hot)
    if self.two_times:
      gap = Gap(dim=self.dim, embed_dim=self.embed_dim, name="gap")
      embed = embed + gap(t, s)
    return embed


class SongEmbedding(nn.Module, kw_only=True):
  """Embeds the noise level and the class, for `SongUNet`, in a float32 vector.

  The vector is swish(dense(swish(dense(waves + dense(one-hot label)))) + gap),
  where only networks of two times have the `Gap`. A label outside
  [0, num_classes), such as -1, means no class: its one-hot vector is zero.

  Args:
    kind: "positional" for the sinusoid of DDPM; "fourier" for sines and cosines
      of random frequencies, which are weights that training does not change.
    waves: the number of sines and cosines.
    embed_dim: the size of the result.
    num_classes: the number of classes; 0 for a network without labels.
    two_times: whether the vector depends on s, the time a step aims at.
  """

  kind: str
  waves: int
  embed_dim: int
  num_classes: int = 0
  two_times: bool = False

  @nn.compact
  def __call__(
    self, t: Time, label: Label | None, s: Time | None = None
  ) -> Vector:
    require_label(label, self.num_classes)
    if self.kind == "positional":
      embed = sinusoid(t, self.waves)
    else:
      frequency = self.param(
        "frequency", nn.initializers.normal(FOURIER), (self.waves // 2,)
      )
      frequency = 2 * jnp.pi * jax.lax.stop_gradient(frequency)
      angle = 1000 * t.astype(jnp.float32)[:, None] * frequency[None, :]
      embed = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    if label is not None:
      one_hot = jax.nn.one_hot(label, self.num_classes)
      embed = embed + nn.Dense(self.waves, name="label")(one_hot)
    embed = nn.swish(nn.Dense(self.embed_dim, name="dense1")(embed))
    embed = nn.Dense(self.embed_dim, name="dense2")(embed)
    if self.two_times:
      gap = Gap(dim=self.waves, embed_dim=self.embed_dim, name="gap")
      embed = embed + gap(t, s)
    return nn.swish(embed)
