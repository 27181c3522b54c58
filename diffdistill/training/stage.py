"""The stages of a run, and what every kind of stage can do."""

import abc
import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from etils import epath

from diffdistill.ranges import BatchSize, Minutes, check_ranges

if TYPE_CHECKING:
  from diffdistill.training.selection_by_score import Selection

# The weights of a stage may come from outside the run. The source "path:DIR" is
# a finished round of another run, and "imported:FILE" is a file of another
# framework.
OUTSIDE = ("path:", "imported:")
# This is the name of the second moments of a teacher's gradients. They are kept
# beside the teacher, because some papers use them as weights.
SECOND_MOMENTS = "second_moments"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
  """One part of a stage, with a directory and a final result of its own.

  Args:
    name: "teacher", or "halve/016" for the student of 16 steps.
    stage: the name of the stage that the round belongs to.
    num_updates: how many updates the round has; the largest possible number if
      the clock ends it; 0 if it makes pairs.
    num_steps: the student's sampler steps; 0 if it has no number of steps.
    more_steps: other numbers of steps that the student is made for too.
    frozen: for each frozen tree of weights, the round that makes it, or the
      address of weights outside the run.
    guided: whether its teacher is guided. A student of this run is not guided
      again; weights from outside the run count as a teacher.
    seconds: the time after which the clock ends the round; 0 for no limit.
  """

  name: str
  stage: str
  num_updates: int
  num_steps: int
  frozen: Mapping[str, str]
  guided: bool
  seconds: float = 0.0
  more_steps: tuple[int, ...] = ()

  @property
  def all_steps(self) -> tuple[int, ...]:
    """All numbers of steps that the student is made for; (0,) for a teacher."""
    return (self.num_steps, *self.more_steps)

  @property
  def code(self) -> int:
    """Makes a number from the name.

    It determines the round's keys and data order.
    """
    return zlib.crc32(self.name.encode()) & 0x7FFFFFFF


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage(abc.ABC):
  """One stage of a recipe; its kinds are `Training` and `Pairs`.

  The properties that are not abstract have the values of a stage that trains
  nothing.

  Args:
    name: the name of the stage; its rounds have this name or lie in a folder
      with it.
    batch_size: images at a time, over all devices.
    frozen: for each frozen tree that the stage needs, its origin: a stage, one
      round of a stage ("halve/008"), or an address outside the run.
    minutes: the time after which the clock ends the stage; 0 for no limit.
  """

  name: str
  batch_size: BatchSize
  frozen: Mapping[str, str] = dataclasses.field(default_factory=dict)
  minutes: Minutes = 0.0

  # The unit in which the progress of a round is counted, such as updates.
  unit: ClassVar[Literal["updates", "pairs"]]

  def __post_init__(self):
    check_ranges(self, f"stages.{self.name}.")

  @property
  @abc.abstractmethod
  def makes(self) -> Literal["denoiser", "classifier", "pairs"]:
    """The kind of result that the stage makes, such as a denoiser or pairs."""

  @abc.abstractmethod
  def rounds(
    self, frozen: Mapping[str, str], guided: bool
  ) -> tuple[Round, ...]:
    """Lists the rounds of the stage, in order.

    Args:
      frozen: for each frozen tree, the round that makes it.
      guided: whether the teacher of the first round is guided.
    """

  @abc.abstractmethod
  def most(self, round_: Round) -> int:
    """How many units a round has, or may have if the clock ends it.

    The units are updates or pairs, see `unit`.
    """

  @abc.abstractmethod
  def settled(self, round_dir: epath.Path) -> int | None:
    """How many units the clock gave a round; None until the number is fixed.

    The units are updates or pairs, see `unit`.

    Raises:
      ValueError: if the record in the round's directory is damaged.
    """

  @abc.abstractmethod
  def by_kind(
    self,
    *,
    train: Callable[[Any], T],
    take: Callable[[Any], T],
    make: Callable[[Any], T],
  ) -> T:
    """Calls the function for this kind of stage, and returns its result.

    Args:
      train: is called for a stage that trains weights.
      take: is called for a stage whose weights come from outside the run.
      make: is called for a stage that makes pairs.
    """

  @property
  def longest(self) -> int:
    """The number of updates of the longest round."""
    rounds = self.rounds(self.frozen, guided=False)
    return max(round_.num_updates for round_ in rounds)

  @property
  def at_a_time(self) -> Mapping[str, int]:
    """How many images are in memory together, by the names of the fields."""
    return {"batch_size": self.batch_size}

  @property
  def product(self) -> str:
    """The name of the tree of weights that the stage makes; may be empty."""
    return ""

  @property
  def classifier(self) -> Any:
    """The classifier that the stage trains or loads; None if there is none."""
    return None

  @property
  def group(self) -> int:
    """How many adjacent rows of a batch must stay on one device."""
    return 1

  @property
  def told(self) -> tuple[float, ...]:
    """The lowest and the highest guidance weight that its student is told.

    It is empty for a stage whose result is told none.
    """
    return ()

  @property
  def teacher_told(self) -> tuple[float, ...]:
    """The range of guidance weights that its teacher is told, like `told`."""
    return ()

  @property
  def source(self) -> str:
    """The address of the weights outside the run; "" if there are none."""
    return ""

  @property
  def start_steps(self) -> int:
    """The number of steps that a student must have to be the teacher.

    0 allows any number.
    """
    return 0

  @property
  def pairs(self) -> str:
    """The stage whose pairs are the data; "" if the data are images."""
    return ""

  @property
  def select(self) -> "Selection | None":
    """How the best weights are selected; None keeps the last weights."""
    return None

  @property
  def updates_per_call(self) -> int:
    """How many updates the devices do in one call from the host."""
    return 1
