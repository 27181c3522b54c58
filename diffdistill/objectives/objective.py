"""What a paper is to the trainer: which trees it trains, and on what loss."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import Batch, Image, Key, Metrics, Params, Scalar
from diffdistill.sampling.sampler import Sampler

# Traced scalars by name: what changes between rounds and updates without a new
# compilation: "num_steps", the student's (int32), and "learning_rate".
Hparams = Mapping[str, Array]


@runtime_checkable
class Classifier(Protocol):
  """An image classifier without its weights, images in [-1, 1]."""

  def init(self, key: Key) -> Params: ...

  def apply(self, params: Params, x: Image, *, key: Key | None = None) -> Any:
    """Logits and pooled features, as fields of those names."""
    ...


@runtime_checkable
class Objective(Protocol):
  """What one paper minimises.

  trains: names of the trained trees; the first is the stage's product.
  needs: names of the frozen trees.
  halves: whether a stage is rounds of half the steps each.
  sampler: how the product is meant to be used; None where it makes no images.
  """

  trains: tuple[str, ...]
  needs: tuple[str, ...]
  halves: bool

  @property
  def sampler(self) -> Sampler | None: ...

  def init(self, key: Key, frozen: Mapping[str, Params]) -> dict[str, Params]:
    """The trained trees before the first update."""
    ...

  def turn(self, step: int) -> tuple[str, ...]:
    """Whose update comes at this step (decided on the host)."""
    ...

  def loss(
    self,
    name: str,
    params: Mapping[str, Params],
    frozen: Mapping[str, Params],
    batch: Batch,
    key: Key,
    hparams: Hparams,
  ) -> tuple[Scalar, Metrics]:
    """The mean loss over the batch, to differentiate in params[name] alone."""
    ...


def weighted_loss(
  target: Float[Array, "b h w c"],
  x0: Float[Array, "b h w c"],
  weight: Float[Array, " b"],
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
  """(weighted error, plain error) per example: mean squares over pixels."""
  mse = jnp.mean(jnp.square(target - x0), axis=(1, 2, 3))
  return weight * mse, mse


def summed(values: Float[Array, " b"]) -> tuple[Array, Array]:
  """A metric's (sum, count) of per-example values."""
  return jnp.sum(values), jnp.asarray(values.shape[0], jnp.float32)
