"""The stages of a run: what every stage is to those who run or report it."""

import abc
import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from etils import epath

from diffdistill.ranges import BatchSize, Minutes, check_ranges

if TYPE_CHECKING:
  from diffdistill.training.pairs_stage import Pairs
  from diffdistill.training.selection import Selection
  from diffdistill.training.training_stage import Training

# A source of weights outside the run: "path:DIR" is a finished round of another
# run, and "imported:FILE" is a file of another framework.
OUTSIDE = ("path:", "imported:")
# The second moments of a teacher's gradients, kept beside the teacher: some
# papers weigh by them.
SECOND_MOMENTS = "second_moments"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
  """One part of a stage, with a directory and a final result of its own.

  Args:
    name: "teacher", or "halve/016" for the student of 16 steps.
    stage: the name of its stage.
    num_updates: how many updates it has; the most, if the clock ends it; 0 if
      it makes pairs.
    num_steps: the student's sampler steps; 0 if it has no number of steps.
    frozen: for each frozen tree, the round that makes it, or a place outside
      the run.
    guided: whether its teacher is guided. A student of this run is not guided
      again; weights from outside count as a teacher.
    seconds: the time after which the round ends, see clock.py; 0 for no limit.
  """

  name: str
  stage: str
  num_updates: int
  num_steps: int
  frozen: Mapping[str, str]
  guided: bool
  seconds: float = 0.0

  @property
  def code(self) -> int:
    """A number made from the name, from which keys and data order derive."""
    return zlib.crc32(self.name.encode()) & 0x7FFFFFFF


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage(abc.ABC):
  """One stage of a recipe; its kinds are `Training` and `Pairs`.

  The properties that are not abstract are defaults for a stage that trains
  nothing.

  Args:
    name: of the stage; its rounds have this name or lie in a folder of it.
    batch_size: images at a time, over all devices.
    frozen: for each frozen tree that the stage needs, the stage that makes it;
      or one round of a stage ("halve/008"), or a place outside the run.
    minutes: the time after which the stage ends; 0 for no limit.
  """

  name: str
  batch_size: BatchSize
  frozen: Mapping[str, str] = dataclasses.field(default_factory=dict)
  minutes: Minutes = 0.0

  # What the progress of a round is counted in.
  unit: ClassVar[Literal["updates", "pairs"]]

  def __post_init__(self):
    check_ranges(self, f"stages.{self.name}.")

  @property
  @abc.abstractmethod
  def makes(self) -> Literal["denoiser", "classifier", "pairs"]:
    """What the stage makes."""

  @abc.abstractmethod
  def rounds(
    self, frozen: Mapping[str, str], guided: bool
  ) -> tuple[Round, ...]:
    """The rounds of the stage, in order.

    Args:
      frozen: for each frozen tree, the round that makes it.
      guided: whether the teacher of the first round is guided.
    """

  @abc.abstractmethod
  def most(self, round_: Round) -> int:
    """The units that a round has, or at most has if the clock ends it."""

  @abc.abstractmethod
  def settled(self, round_dir: epath.Path) -> int | None:
    """The units of a round that the clock ends; None until they are known.

    Raises:
      ValueError: if the record in the round's directory is damaged.
    """

  @abc.abstractmethod
  def by_kind(
    self,
    *,
    train: Callable[["Training"], T],
    take: Callable[["Training"], T],
    make: Callable[["Pairs"], T],
  ) -> T:
    """Calls the function for this kind of stage, and returns its result.

    Args:
      train: for a stage that trains weights.
      take: for a stage whose weights come from outside the run.
      make: for a stage that makes pairs.
    """

  @property
  def longest(self) -> int:
    """The updates of the longest round."""
    rounds = self.rounds(self.frozen, guided=False)
    return max(round_.num_updates for round_ in rounds)

  @property
  def at_a_time(self) -> Mapping[str, int]:
    """The fields that say how many images are in memory together."""
    return {"batch_size": self.batch_size}

  @property
  def product(self) -> str:
    """The name of the tree that the stage makes; empty if it makes none."""
    return ""

  @property
  def classifier(self) -> Any:
    """The classifier that the stage trains or is given; None without one."""
    return None

  @property
  def group(self) -> int:
    """How many adjacent rows of a batch must stay on one device."""
    return 1

  @property
  def source(self) -> str:
    """The place outside the run that the weights come from; "" if trained."""
    return ""

  @property
  def start_steps(self) -> int:
    """The only number of steps that a student may have to be the teacher.

    0 allows every number.
    """
    return 0

  @property
  def pairs(self) -> str:
    """The stage whose pairs are the data; empty if images are."""
    return ""

  @property
  def select(self) -> "Selection | None":
    """How the best weights are selected; None to keep those at the end."""
    return None

  @property
  def updates_per_call(self) -> int:
    """How many updates the devices do without the host in between."""
    return 1


def trainings(stages: Iterable[Stage]) -> dict[str, "Training"]:
  """The stages that have weights, by name: all but those of pairs."""

  def keep(stage: "Training") -> list["Training"]:
    return [stage]

  def drop(stage: "Pairs") -> list["Training"]:
    return []

  kept = (s.by_kind(train=keep, take=keep, make=drop) for s in stages)
  return {stage.name: stage for found in kept for stage in found}


def pairs_stages(stages: Iterable[Stage]) -> dict[str, "Pairs"]:
  """The stages that make pairs, by name."""

  def keep(stage: "Pairs") -> list["Pairs"]:
    return [stage]

  def drop(stage: "Training") -> list["Pairs"]:
    return []

  kept = (s.by_kind(train=drop, take=drop, make=keep) for s in stages)
  return {stage.name: stage for found in kept for stage in found}
