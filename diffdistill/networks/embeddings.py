"""Embeds the times and the label that a network reads in one vector.

The vector encodes the noise level, the class and, for networks that read them,
the time that a step aims at and the guidance weight. It is always float32: this
is cheap, and the derivatives in time that jax.jvp computes need this precision.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import Label, Time
from diffdistill.networks.layers import Vector
from diffdistill.networks.require import require_label

# The standard deviation of NCSN++'s random frequencies (Song et al. 2021).
FOURIER = 16.0
# `ZeroBranch` multiplies its number by this factor, which is our own choice.
BRANCH_SCALE = 10.0


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


class ZeroBranch(nn.Module, kw_only=True):
  """Embeds one more number of each image in a float32 vector, 0 at first.

  The vector is Dense(h(value) - h(0)), h = swish(Dense(sinusoid)). It is zero
  for the value 0, so a model that is only trained there does not change this
  part: a teacher of two times is trained with t - s = 0. The last layer starts
  at zero, so that adding this part to a trained network does not change its
  output. [ours]: the scale of the sinusoid is 10; a scale of 1000 would make
  derivatives in time a hundred times larger and a hundred times less exact.

  Args:
    dim: the size of the sinusoid; even, 4 or more.
    embed_dim: the size of the result.
  """

  dim: int
  embed_dim: int

  @nn.compact
  def __call__(self, value: Float[Array, " b"]) -> Vector:
    dense1 = nn.Dense(self.embed_dim, name="dense1")

    def hidden(value: Float[Array, " b"]) -> Vector:
      return nn.swish(dense1(sinusoid(value, self.dim, scale=BRANCH_SCALE)))

    zeros = nn.initializers.zeros
    dense2 = nn.Dense(
      self.embed_dim, use_bias=False, kernel_init=zeros, name="dense2"
    )
    return dense2(hidden(value) - hidden(jnp.zeros_like(value)))


def gap_of(t: Time, s: Time | None) -> Time:
  """The gap t - s between both times; 0 if s is None, which means s = t."""
  return jnp.zeros_like(t) if s is None else t - s


class Embedding(nn.Module, kw_only=True):
  """Embeds the noise level and the class in one float32 vector.

  The vector is sinusoid -> Dense -> swish -> Dense, plus Dense(one-hot label),
  plus a `ZeroBranch` of t - s and one of the guidance weight, for networks that
  read these. A label outside [0, num_classes), such as -1, means no class: its
  one-hot vector is zero. Without a weight, nothing is added for it.

  Args:
    dim: the size of the sinusoid; even, 4 or more.
    embed_dim: the size of the result.
    num_classes: the number of classes; 0 for a network without labels.
    cos_first, shift: arguments of `sinusoid`.
    two_times: whether the vector depends on s, the time a step aims at.
    told_guidance: whether the vector depends on the guidance weight.
  """

  dim: int
  embed_dim: int
  num_classes: int = 0
  cos_first: bool = False
  shift: int = 1
  two_times: bool = False
  told_guidance: bool = False

  @nn.compact
  def __call__(
    self,
    t: Time,
    label: Label | None,
    s: Time | None = None,
    guidance: Float[Array, " b"] | None = None,
  ) -> Vector:
    require_label(label, self.num_classes)
    waves = sinusoid(t, self.dim, cos_first=self.cos_first, shift=self.shift)
    embed = nn.Dense(self.embed_dim, name="dense1")(waves)
    embed = nn.Dense(self.embed_dim, name="dense2")(nn.swish(embed))
    if label is not None:
      one_hot = jax.nn.one_hot(label, self.num_classes)
      embed = embed + nn.Dense(self.embed_dim, name="label")(one_hot)
    branch = functools.partial(
      ZeroBranch, dim=self.dim, embed_dim=self.embed_dim
    )
    if self.two_times:
      embed = embed + branch(name="gap")(gap_of(t, s))
    if self.told_guidance and guidance is not None:
      embed = embed + branch(name="guidance")(guidance)
    return embed


class SongEmbedding(nn.Module, kw_only=True):
  """Embeds the noise level and the class, for `SongUNet`, in a float32 vector.

  The vector is swish(dense(swish(dense(waves + dense(one-hot label)))) + more),
  where `more` has the same branches as in `Embedding`. A label outside
  [0, num_classes), such as -1, means no class: its one-hot vector is zero.

  Args:
    kind: "positional" for the sinusoid of DDPM; "fourier" for sines and cosines
      of random frequencies, which are weights that training does not change.
    waves: the number of sines and cosines.
    embed_dim: the size of the result.
    num_classes: the number of classes; 0 for a network without labels.
    two_times: whether the vector depends on s, the time a step aims at.
    told_guidance: whether the vector depends on the guidance weight.
  """

  kind: str
  waves: int
  embed_dim: int
  num_classes: int = 0
  two_times: bool = False
  told_guidance: bool = False

  @nn.compact
  def __call__(
    self,
    t: Time,
    label: Label | None,
    s: Time | None = None,
    guidance: Float[Array, " b"] | None = None,
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
    branch = functools.partial(
      ZeroBranch, dim=self.waves, embed_dim=self.embed_dim
    )
    if self.two_times:
      embed = embed + branch(name="gap")(gap_of(t, s))
    if self.told_guidance and guidance is not None:
      embed = embed + branch(name="guidance")(guidance)
    return nn.swish(embed)
