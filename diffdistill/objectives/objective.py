"""What a paper is to the trainer: which trees it trains, and on what loss."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import (
  Batch,
  Image,
  Key,
  Label,
  Metrics,
  Params,
  Scalar,
)
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.prediction import Denoise
from diffdistill.sampling.sampler import Sampler

# Traced scalars by name: what changes between rounds and updates without a new
# compilation: "num_steps", the student's (int32), "learning_rate", and
# "guided", 1 where the teacher is guided and 0 where it is itself a student.
Hparams = Mapping[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passes:
  """Network passes that one example of a batch costs in one update.

  Args:
    forward: of the denoiser.
    gradient: of the denoiser, forward and backward to its weights.
    tangent: of the denoiser, forward with a derivative along its weights.
    classifier: forward passes of a classifier.
    classifier_gradient: of a classifier, forward and backward.
  """

  forward: int | float = 0
  gradient: int | float = 0
  tangent: int | float = 0
  classifier: int | float = 0
  classifier_gradient: int | float = 0

  @property
  def units(self) -> int | float:
    """In forward passes of the denoiser: a gradient or a tangent is 3.

    A layer y = W x has the tangent W' x + W x', two products beside its own.
    """
    return self.forward + 3 * (self.gradient + self.tangent)


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
  consumes: "images", a batch of "image" and "label", or "pairs", one that has
    the teacher's images and the "noise" they came from.
  rounds: what a stage is: "one" training of something that has no number of
    steps, "one_step" of a student of one step, "halving" rounds of half the
    steps each, every teacher the student before it, or "each" of some numbers
    of steps by itself.
  sampler: how the product is meant to be used; None where it makes no images.
  """

  trains: tuple[str, ...]
  consumes: str
  rounds: str

  @property
  def needs(self) -> tuple[str, ...]: ...

  @property
  def sampler(self) -> Sampler | None: ...

  def init(self, key: Key, frozen: Mapping[str, Params]) -> dict[str, Params]:
    """The trained trees before the first update."""
    ...

  def turn(self, step: int) -> tuple[str, ...]:
    """Whose update comes at this step (decided on the host)."""
    ...

  def passes(self, name: str, guided: bool = False) -> Passes:
    """What one example of an update of the tree `name` costs.

    Args:
      name: of `trains`.
      guided: whether the teacher of the round is one to be guided.
    """
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


def bind_teacher(
  denoiser: Denoiser,
  params: Params,
  label: Label | None,
  guidance: Guidance,
  hparams: Hparams,
  key: Key | None = None,
) -> Denoise:
  """The frozen teacher of a round, guided unless it is itself a student.

  A student of a guided teacher has its guidance in its weights already.
  """
  return denoiser.bind(
    params, label, guidance, scale=hparams["guided"], key=key
  )


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


def makes_classifier(objective: Objective) -> bool:
  """Whether the objective makes a classifier, by which a run can be judged."""
  return objective.trains[0] == "classifier"


def classifier_of(objective: Objective) -> Any:
  """The classifier that the objective trains or is given; None without one."""
  return getattr(objective, "classifier", None)
