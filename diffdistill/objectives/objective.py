"""The interface of an objective: the trees that it trains, and their loss."""

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

from diffdistill.arrays import Batch, Condition, Image, Key, Metrics, Params
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.prediction import Model
from diffdistill.ranges import Share
from diffdistill.sampling.sampler import Sampler

# The names of the trees that learn together, from one loss, in one update.
Turn = tuple[str, ...]
# Trees of weights by name, such as "student" and "teacher"; "student/target" is
# a moving average of the student.
Trees = Mapping[str, Params]
Loss = tuple[Float[Array, ""], Metrics]


@runtime_checkable
class HasInit(Protocol):
  """A network of which the trainer only needs `init`, which draws weights."""

  def init(self, key: Key) -> Params: ...


@runtime_checkable
class Classifier(Protocol):
  """An image classifier without its weights; its images are in [-1, 1]."""

  def init(self, key: Key) -> Params: ...

  def apply(self, params: Params, x: Image, *, key: Key | None = None) -> Any:
    """Returns an object with the fields `logits` and (pooled) `features`."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tree:
  """One network that an objective trains.

  Args:
    start: the frozen tree whose weights this tree copies at first; empty to
      draw the weights at random.
    network: the network whose weights the tree holds; None for that of the
      denoiser. A head or a weighting network is passed to the objective.
    averages: the decay of each moving average that the loss uses or the round
      hands on, by name. In "student", {"target": 0.95} makes "student/target".
  """

  start: str = ""
  network: HasInit | None = None
  averages: Mapping[str, Share] = dataclasses.field(default_factory=dict)


class Now(NamedTuple):
  """The place of an update in its run; traced, so that nothing recompiles.

  `num_steps` is the number of the student's sampler steps. `guided` is 1 if the
  teacher is guided, and 0 if the teacher is itself a student. `step` is the
  number of updates done. `progress` is the share of the round that is done, in
  [0, 1). If the clock ends the round, `progress` is the share of the anneal, in
  which the learning rate falls, and 0 before the anneal.
  """

  num_steps: Int[Array, ""]
  guided: Float[Array, ""]
  step: Int[Array, ""]
  progress: Float[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passes:
  """The network passes that one example of a batch costs in one update.

  Args:
    forward: passes of the denoiser, forward only.
    gradient: passes of the denoiser, forward and backward to its weights.
    tangent: passes of the denoiser with a derivative along its weights.
    input_gradient: passes of the denoiser, forward and backward to its input.
    input_tangent: passes of the denoiser with a derivative along its input.
    tangent_gradient: passes of the denoiser, forward with a derivative along
      its input, and backward to its weights through both.
    trunk: passes of the trunk, the denoiser up to a head's features.
    trunk_gradient: passes of the trunk, forward and backward to its input.
    trunk_share: the cost of the trunk in whole passes, in (0, 1].
    classifier: passes of a classifier, forward only.
    classifier_gradient: passes of a classifier, forward and backward.
  """

  forward: int | float = 0
  gradient: int | float = 0
  tangent: int | float = 0
  input_gradient: int | float = 0
  input_tangent: int | float = 0
  tangent_gradient: int | float = 0
  trunk: int | float = 0
  trunk_gradient: int | float = 0
  trunk_share: int | float = 1
  classifier: int | float = 0
  classifier_gradient: int | float = 0

  @property
  def units(self) -> int | float:
    """The cost in forward passes of the denoiser.

    A layer y = W x computes one product. Its tangent W' x + W x' needs two more
    products, and its gradient too, so each costs 3 units. A derivative along
    the input alone, or a gradient to the input alone, needs one more product,
    so it costs 2 units. The gradient of such a derivative needs both backward
    products twice, so it costs 6.
    """
    return (
      self.forward
      + 3 * (self.gradient + self.tangent)
      + 2 * (self.input_gradient + self.input_tangent)
      + 6 * self.tangent_gradient
      + self.trunk_share * (self.trunk + 2 * self.trunk_gradient)
    )


class Objective(abc.ABC):
  """The loss that one paper minimises, and the trees that learn from it.

  Each paper is a frozen dataclass that inherits from this class, in a file of
  its own. The defaults suit a student that starts as a copy of its teacher, and
  is the only tree that learns, from images.
  """

  if TYPE_CHECKING:

    @property
    def denoiser(self) -> Denoiser:
      """The architecture of teacher and student.

      An objective without a denoiser must name a network for each of its trees.
      """
      ...

    @property
    def sampler(self) -> Sampler | None:
      """The sampler of the weights handed on; None if they make no images."""
      ...

  # How a stage is divided into rounds. "one": a single round without a number
  # of steps. "one_step": a single round of a one-step student. "halving": each
  # round halves the steps, and its teacher is the student of the round before.
  # "each": one round for each number in the stage's num_steps. "any": a single
  # round, whose student is judged at each number in the stage's num_steps.
  rounds: ClassVar[str]
  # The training data: "images", or "pairs", which are the teacher's images with
  # the "noise" that they were made from.
  consumes: ClassVar[str] = "images"
  # How many adjacent examples of a batch must stay on one device.
  group: ClassVar[int] = 1
  # Whether the teacher is told the weights `told`, in place of being guided.
  teacher_told: ClassVar[bool] = False

  @abc.abstractmethod
  def passes(self, turn: Turn, num_steps: int, guided: bool) -> Passes:
    """Counts the network passes that one example costs in an update.

    Args:
      turn: one of `cycle`.
      num_steps: the number of the student's sampler steps.
      guided: whether the teacher of the round is guided.
    """

  @abc.abstractmethod
  def loss(
    self, turn: Turn, trees: Trees, batch: Batch, key: Key, now: Now
  ) -> Loss:
    """Computes the mean loss over the batch, and metrics as (sum, count).

    Args:
      turn: the trees in which the loss is differentiated.
      trees: all trained trees, their averages, and the frozen trees of `needs`.
      batch: a batch of images or of pairs, see `consumes`.
      key: the key of all random numbers.
      now: the place of the update in its run.
    """

  @property
  def trees(self) -> Mapping[str, Tree]:
    """The trees that are trained, by name."""
    return {"student": Tree(start="teacher")}

  @property
  def product(self) -> str:
    """The weights that a round hands on: a tree, or one of its averages.

    "student/target" names an average. If this is the name of a tree whose
    optimizer keeps a moving average, the round hands on that average.
    """
    return next(iter(self.trees))

  @property
  def starts(self) -> tuple[str, ...]:
    """Frozen denoisers that are needed only at the start, and then released."""
    copied = dict.fromkeys(tree.start for tree in self.trees.values())
    return tuple(name for name in copied if name and name not in self.needs)

  @property
  def needs(self) -> Mapping[str, str]:
    """The kinds of the frozen trees that each update needs, by name.

    A kind is "denoiser", "classifier", or "moments": the second moments of a
    denoiser's gradients, which its training estimated.
    """
    return {"teacher": "denoiser"}

  @property
  def told(self) -> tuple[float, ...]:
    """(low, high) of guidance weights that the student is told; () for none."""
    return ()

  @property
  def features(self) -> tuple[str, ...]:
    """The denoiser's features that a pass of its trunk computes, by name."""
    return ()

  @property
  def cycle(self) -> tuple[Turn, ...]:
    """The turns, one for each update, repeated in a cycle.

    By default, there is one turn, in which all trees learn. Five updates of a
    critic and its head, and then one of the student, are
    (("critic", "head"),) * 5 + (("student",),).
    """
    return (tuple(self.trees),)

  def network(self, name: str) -> HasInit:
    """The network whose weights the trained tree of this name holds."""
    return self.trees[name].network or self.denoiser.network

  def frozen_init(self, name: str) -> Callable[[Key], Params]:
    """Makes a function that draws weights with the shape of a frozen tree."""
    kind = {**dict.fromkeys(self.starts, "denoiser"), **self.needs}[name]
    if kind == "classifier":
      return classifier_of(self).init
    draw = self.denoiser.network.init
    if kind == "denoiser":
      return draw
    return lambda key: jax.tree.map(jnp.ones_like, draw(key))

  def init(self, key: Key, frozen: Trees) -> dict[str, Params]:
    """Makes the trained trees before the first update."""
    result = {}
    for i, (name, tree) in enumerate(self.trees.items()):
      if tree.start:
        result[name] = jax.tree.map(jnp.copy, frozen[tree.start])
      else:
        key_tree = jax.random.fold_in(key, i) if i else key
        result[name] = self.network(name).init(key_tree)
    return result


def turn_of(objective: Objective, step: int) -> Turn:
  """Names the trees that learn in update number `step`, counted from 0."""
  return objective.cycle[step % len(objective.cycle)]


def product_tree(objective: Objective) -> str:
  """The trained tree that the round hands on, or whose average it hands on."""
  return objective.product.partition("/")[0]


def bind_teacher(
  denoiser: Denoiser,
  params: Params,
  condition: Condition,
  guidance: Guidance,
  now: Now,
  key: Key | None = None,
) -> Model:
  """Gives the frozen teacher of a round its weights and its condition.

  The teacher is guided unless it is itself a student: a student of a guided
  teacher has the guidance in its weights.
  """
  return denoiser.bind(params, condition, guidance, scale=now.guided, key=key)


def weighted_loss(
  target: Float[Array, "b h w c"],
  x0: Float[Array, "b h w c"],
  weight: Float[Array, " b"],
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
  """Computes (weighted error, error) per example, as means over pixels."""
  mse = jnp.mean(jnp.square(target - x0), axis=(1, 2, 3))
  return weight * mse, mse


def summed(values: Float[Array, " b"]) -> tuple[Array, Array]:
  """Makes a metric: the (sum, count) of the values of all examples."""
  return jnp.sum(values), jnp.asarray(values.shape[0], jnp.float32)


def makes_classifier(objective: Objective) -> bool:
  """Whether the objective makes a classifier, which can judge a run."""
  return product_tree(objective) == "classifier"


def classifier_of(objective: Objective) -> Any:
  """Finds the classifier that the objective trains or uses, or None."""
  return getattr(objective, "classifier", None)
