"""What a paper is to the trainer: which trees it trains, and on what loss."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import (
  TYPE_CHECKING,
  Any,
  ClassVar,
  NamedTuple,
  Protocol,
  runtime_checkable,
)

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffdistill.arrays import (
  Batch,
  Condition,
  Image,
  Key,
  Metrics,
  Params,
  Scalar,
)
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.prediction import Model
from diffdistill.ranges import Share
from diffdistill.sampling.sampler import Sampler

# The names of the trees that learn together, from one loss.
Turn = tuple[str, ...]
# Weights by name: "student", "teacher"; "student/target" is an average.
Trees = Mapping[str, Params]
Loss = tuple[Scalar, Metrics]


@runtime_checkable
class HasInit(Protocol):
  """A network as the trainer sees it: something that draws its weights."""

  def init(self, key: Key) -> Params: ...


@runtime_checkable
class Classifier(Protocol):
  """An image classifier without its weights, images in [-1, 1]."""

  def init(self, key: Key) -> Params: ...

  def apply(self, params: Params, x: Image, *, key: Key | None = None) -> Any:
    """Logits and pooled features, as fields of those names."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree:
  """One network that an objective trains.

  Args:
    start: the frozen tree that it begins as a copy of; empty to draw it anew.
    network: whose weights it holds; None for the objective's denoiser. A head
      or a weighting network is handed to the objective from outside.
    averages: the decay of each moving average that the loss or the product
      needs, by name: {"target": 0.95} is "student/target".
  """

  start: str = ""
  network: HasInit | None = None
  averages: Mapping[str, Share] = dataclasses.field(default_factory=dict)


class Now(NamedTuple):
  """Where a round is: traced scalars, so that nothing is compiled anew.

  num_steps: of the student's sampler. guided: 1 where the teacher is guided, 0
  where it is itself a student. step: updates done. progress: the part of the
  round that is done, in [0, 1); where the round ends by the clock, the part of
  its anneal, and 0 before that.
  """

  num_steps: Int[Array, ""]
  guided: Float[Array, ""]
  step: Int[Array, ""]
  progress: Float[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passes:
  """Network passes that one example of a batch costs in one update.

  Args:
    forward: of the denoiser.
    gradient: of the denoiser, forward and backward to its weights.
    tangent: of the denoiser, forward with a derivative along its weights.
    input_gradient: of the denoiser, forward and backward to its input.
    input_tangent: of the denoiser, forward with a derivative along its input.
    trunk: forward passes as far as the features that a head reads.
    trunk_gradient: of the same part, forward and backward to its input.
    trunk_share: the part of a whole pass that a trunk is, in (0, 1].
    classifier: forward passes of a classifier.
    classifier_gradient: of a classifier, forward and backward.
  """

  forward: int | float = 0
  gradient: int | float = 0
  tangent: int | float = 0
  input_gradient: int | float = 0
  input_tangent: int | float = 0
  trunk: int | float = 0
  trunk_gradient: int | float = 0
  trunk_share: int | float = 1
  classifier: int | float = 0
  classifier_gradient: int | float = 0

  @property
  def units(self) -> int | float:
    """The cost in forward passes of the denoiser.

    A layer y = W x has the tangent W' x + W x', two products beside its own,
    and so has its gradient: 3. Along or to the input alone it is one: 2.
    """
    return (
      self.forward
      + 3 * (self.gradient + self.tangent)
      + 2 * (self.input_gradient + self.input_tangent)
      + self.trunk_share * (self.trunk + 2 * self.trunk_gradient)
    )


class Objective(abc.ABC):
  """What one paper minimises.

  A paper is a frozen dataclass of it in a file of its own. The defaults here
  are of a student that begins as its teacher and learns alone from images.
  """

  if TYPE_CHECKING:

    @property
    def denoiser(self) -> Denoiser:
      """The architecture of teacher and student.

      An objective without one has a network of its own for every tree.
      """
      ...

    @property
    def sampler(self) -> Sampler | None:
      """How the product is meant to be used; None if it makes no images."""
      ...

  # What a stage is: "one" training of something that has no number of steps,
  # "one_step" of a student of one step, "halving" rounds of half the steps
  # each, every teacher the student before it, or "each" of some numbers of
  # steps by itself.
  rounds: ClassVar[str]
  # "images", or "pairs": the teacher's images and their "noise".
  consumes: ClassVar[str] = "images"
  # How many adjacent examples must stay together, on one device.
  group: ClassVar[int] = 1

  @abc.abstractmethod
  def passes(self, turn: Turn, num_steps: int, guided: bool) -> Passes:
    """What one example of an update costs.

    Args:
      turn: of `cycle`.
      num_steps: of the student's sampler.
      guided: whether the teacher of the round is one to be guided.
    """

  @abc.abstractmethod
  def loss(
    self, turn: Turn, trees: Trees, batch: Batch, key: Key, now: Now
  ) -> Loss:
    """The mean loss over the batch, and metrics as (sum, count).

    Args:
      turn: the trees that it is differentiated in, together.
      trees: all that are trained, their averages, and all that are needed.
      batch: of what the objective consumes.
      key: of everything random.
      now: where the round is.
    """

  @property
  def trees(self) -> Mapping[str, Tree]:
    """What is trained, by name."""
    return {"student": Tree(start="teacher")}

  @property
  def product(self) -> str:
    """What a round makes: a tree, or one of its averages ("student/target").

    A tree whose optimizer keeps a moving average is that average.
    """
    return next(iter(self.trees))

  @property
  def starts(self) -> tuple[str, ...]:
    """Frozen denoisers that are needed only to begin, and released then."""
    return ()

  @property
  def needs(self) -> Mapping[str, str]:
    """The frozen trees of every update, by name.

    Each is a "denoiser", a "classifier", or the "moments" of a denoiser's
    gradients, which its training estimated.
    """
    return {"teacher": "denoiser"}

  @property
  def features(self) -> tuple[str, ...]:
    """The names of the denoiser's features that its trunk passes compute."""
    return ()

  @property
  def cycle(self) -> tuple[Turn, ...]:
    """The turns, one an update, repeated; by default all trees learn at once.

    Five updates of a critic and its head to one of the student are
    (("critic", "head"),) * 5 + (("student",),).
    """
    return (tuple(self.trees),)

  def network(self, name: str) -> HasInit:
    """The network of a trained tree."""
    return self.trees[name].network or self.denoiser.network

  def frozen_init(self, name: str) -> Callable[[Key], Params]:
    """Draws weights of the shape of a frozen tree, with no meaning."""
    kind = {**dict.fromkeys(self.starts, "denoiser"), **self.needs}[name]
    if kind == "classifier":
      return classifier_of(self).init
    draw = self.denoiser.network.init
    if kind == "denoiser":
      return draw
    return lambda key: jax.tree.map(jnp.ones_like, draw(key))

  def init(self, key: Key, frozen: Trees) -> dict[str, Params]:
    """The trained trees before the first update."""
    result = {}
    for i, (name, tree) in enumerate(self.trees.items()):
      if tree.start:
        result[name] = jax.tree.map(jnp.copy, frozen[tree.start])
      else:
        key_tree = jax.random.fold_in(key, i) if i else key
        result[name] = self.network(name).init(key_tree)
    return result


def turn_of(objective: Objective, step: int) -> Turn:
  """The trees that learn at an update (from 0)."""
  return objective.cycle[step % len(objective.cycle)]


def product_tree(objective: Objective) -> str:
  """The trained tree that a round's product is, or is an average of."""
  return objective.product.partition("/")[0]


def bind_teacher(
  denoiser: Denoiser,
  params: Params,
  condition: Condition,
  guidance: Guidance,
  now: Now,
  key: Key | None = None,
) -> Model:
  """The frozen teacher of a round, guided unless it is itself a student.

  A student of a guided teacher has its guidance in its weights already.
  """
  return denoiser.bind(params, condition, guidance, scale=now.guided, key=key)


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
  return product_tree(objective) == "classifier"


def classifier_of(objective: Objective) -> Any:
  """The classifier that the objective trains or is given; None without one."""
  return getattr(objective, "classifier", None)
