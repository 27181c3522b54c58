"""The stage that trains weights, or takes them from outside the run."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from etils import epath

from diffdistill.objectives.objective import (
  Objective,
  classifier_of,
  makes_classifier,
  product_tree,
)
from diffdistill.ranges import Range, Steps, Updates
from diffdistill.training.clock import UPDATES, recorded
from diffdistill.training.curriculum import halved
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.selection_by_score import Selection
from diffdistill.training.stage import OUTSIDE, Round, Stage, T


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(Stage):
  """A stage that minimises an objective, in one round or in several.

  If it has `minutes`, its rounds share them; a round with twice the updates
  gets twice the time. The learning rate is annealed before the end. A round of
  fewer than four calls is too short to be timed.

  Args:
    objective: the objective that is minimised.
    optimizer: the optimizer of every tree that has none of its own.
    optimizers: the optimizers of single trees, by name.
    accumulate: the number of parts of a batch, which are computed one after
      the other.
    num_updates: the updates of each round, or the largest number if the clock
      ends it.
    enough_updates: if the clock gives a round fewer updates than this, a line
      says that its images will not be good; 0 for no such line.
    source: the address of weights outside the run, which become the result of
      this stage. Then nothing is trained.
    start_steps: the teacher's steps before the first halving.
    end_steps: the steps of the last student.
    num_steps: the students' numbers of steps, if the stage trains each student
      by itself; or those of its only student, which is sampled in the first
      number by default and judged at all of them.
    long_rounds: students with at most this many steps get twice the num_updates
      (Salimans & Ho 2022, section 5.2: the rounds of 2 steps and of 1 step); 0
      for none.
    pairs: the stage whose pairs are the data, if the objective consumes pairs.
    select: how the best weights are selected; None keeps the weights at the
      end.
    updates_per_call: how many updates the devices do in one call from the host.
      Many updates in one call are faster if one update takes milliseconds. The
      number is a multiple of the length of the objective's cycle, and each
      cadence is a multiple of the number.
    teacher_dtype: "bfloat16" halves the memory of the frozen teacher, once the
      student has been copied from it.
  """

  objective: Objective
  optimizer: Optimizer
  num_updates: Updates
  enough_updates: Annotated[int, Range(0, 10**9)] = 0
  source: str = ""
  start_steps: Annotated[int, Range(0, 10**5)] = 0
  end_steps: Steps = 1
  long_rounds: Annotated[int, Range(0, 10**5)] = 2
  num_steps: tuple[Steps, ...] = ()
  pairs: str = ""
  select: Selection | None = None
  updates_per_call: Annotated[int, Range(1, 10**6)] = 1
  optimizers: Mapping[str, Optimizer] = dataclasses.field(default_factory=dict)
  accumulate: Annotated[int, Range(1, 10**6)] = 1
  teacher_dtype: str = "float32"

  unit: ClassVar[Literal["updates", "pairs"]] = "updates"

  def __post_init__(self):
    super().__post_init__()
    self._check_given()
    self._check_optimizers()
    self._check_calls()
    self._check_teacher_dtype()
    self._check_rounds()
    self._check_selection()

  @property
  def makes(self) -> Literal["denoiser", "classifier"]:
    return "classifier" if makes_classifier(self.objective) else "denoiser"

  @property
  def product(self) -> str:
    return product_tree(self.objective)

  @property
  def classifier(self) -> Any:
    return classifier_of(self.objective)

  @property
  def group(self) -> int:
    return self.objective.group

  @property
  def told(self) -> tuple[float, ...]:
    return self.objective.told

  @property
  def teacher_told(self) -> tuple[float, ...]:
    return self.told if self.objective.teacher_told else ()

  @property
  def all_optimizers(self) -> dict[str, Optimizer]:
    """The optimizer of every tree, by name."""
    return {
      name: self.optimizers.get(name, self.optimizer)
      for name in self.objective.trees
    }

  def most(self, round_: Round) -> int:
    return round_.num_updates

  def settled(self, round_dir: epath.Path) -> int | None:
    return recorded(round_dir, UPDATES)

  def by_kind(
    self,
    *,
    train: Callable[[Any], T],
    take: Callable[[Any], T],
    make: Callable[[Any], T],
  ) -> T:
    return take(self) if self.source else train(self)

  def rounds(
    self, frozen: Mapping[str, str], guided: bool
  ) -> tuple[Round, ...]:
    make = functools.partial(self._round, frozen=frozen, guided=guided)
    kind = self.objective.rounds
    if kind == "one":
      return (make(self.name, 0),)
    if kind == "one_step":
      return (make(f"{self.name}/001", 1),)
    if kind == "each":
      return tuple(make(f"{self.name}/{n:03d}", n) for n in self.num_steps)
    if kind == "any":
      first, *more = self.num_steps
      only = make(f"{self.name}/any", first)
      return (dataclasses.replace(only, more_steps=tuple(more)),)
    result = []
    for num_steps in self._students():
      name = f"{self.name}/{num_steps:03d}"
      result.append(self._round(name, num_steps, frozen, guided))
      frozen, guided = {**frozen, "teacher": name}, False
    return tuple(result)

  def _students(self) -> list[int]:
    """The number of steps of each round; 0 for a round without a number."""
    if self.objective.rounds == "halving":
      return halved(self.start_steps, self.end_steps)
    if self.objective.rounds == "any":
      return list(self.num_steps[:1])
    return list(self.num_steps) or [0]

  def _parts(self, num_steps: int) -> int:
    """The length of a round, as a multiple of num_updates."""
    halving = self.objective.rounds == "halving"
    return 2 if halving and num_steps <= self.long_rounds else 1

  def _round(
    self, name: str, num_steps: int, frozen: Mapping[str, str], guided: bool
  ) -> Round:
    parts = self._parts(num_steps)
    total = sum(map(self._parts, self._students()))
    return Round(
      name=name,
      stage=self.name,
      num_updates=0 if self.source else self.num_updates * parts,
      num_steps=num_steps,
      frozen=frozen,
      guided=guided,
      seconds=0.0 if self.source else 60 * self.minutes * parts / total,
    )

  def _check_given(self):
    given = {*self.objective.starts, *self.objective.needs}
    if given != set(self.frozen):
      raise ValueError(
        f"stages.{self.name}.frozen names {sorted(self.frozen)}; its objective"
        f" needs exactly {sorted(given)}; pass those"
      )
    if self.enough_updates and not self.minutes:
      raise ValueError(
        f"stages.{self.name}.enough_updates is {self.enough_updates}, which"
        " only a stage of some minutes uses; set it to 0"
      )
    if self.source and (given or not self.source.startswith(OUTSIDE)):
      raise ValueError(
        f"stages.{self.name}.source is {self.source!r}; pass imported:PATH or"
        " path:DIR, to a stage of a teacher or a classifier"
      )

  def _check_optimizers(self):
    trees, product = self.objective.trees, self.product
    for name, optimizer in self.optimizers.items():
      path = f"stages.{self.name}.optimizers.{name}"
      if name not in trees:
        raise ValueError(
          f"{path} is of no tree that is trained; pass some of"
          f" {', '.join(trees)}"
        )
      ours, theirs = self.optimizer.averages, optimizer.averages
      if name != product and ours != theirs:
        raise ValueError(
          f"{path} keeps the averages {dict(theirs)}, but only the product"
          f" {product} has them; leave ema_decay and other_ema_decays out"
        )

  def _check_calls(self):
    if self.batch_size % (self.accumulate * self.group):
      raise ValueError(
        f"stages.{self.name}.batch_size is {self.batch_size}, which"
        f" accumulate={self.accumulate} times groups of {self.group} does not"
        " divide; pass a multiple of it"
      )
    cycle = len(self.objective.cycle)
    if self.updates_per_call > 1 and self.updates_per_call % cycle:
      raise ValueError(
        f"stages.{self.name}.updates_per_call is {self.updates_per_call}, but"
        f" its trees {', '.join(self.objective.trees)} take turns; pass 1 or a"
        f" multiple of {cycle}"
      )

  def _check_teacher_dtype(self):
    path = f"stages.{self.name}.teacher_dtype is {self.teacher_dtype!r}"
    if self.teacher_dtype == "float32":
      return
    if self.teacher_dtype != "bfloat16":
      raise ValueError(f"{path}; pass float32 or bfloat16")
    if "teacher" not in self.objective.needs:
      raise ValueError(f"{path}, but its objective has no teacher; remove it")
    # An objective that takes tangents computes with a float32 copy of the
    # teacher, so a bfloat16 teacher would save nothing.
    if any(
      self.objective.passes(turn, 1, True).tangent
      for turn in self.objective.cycle
    ):
      raise ValueError(
        f"{path}, but its objective takes derivatives along the teacher's"
        " weights; pass float32"
      )

  def _check_rounds(self):
    kind = self.objective.rounds
    for field, value, wanted in (
      ("start_steps", self.start_steps, kind == "halving"),
      ("num_steps", self.num_steps, kind in ("each", "any")),
      ("pairs", self.pairs, self.objective.consumes == "pairs"),
    ):
      if bool(value) != wanted:
        use = "needs it; pass one" if wanted else "has no use for it; remove it"
        raise ValueError(
          f"stages.{self.name}.{field} is {value!r}, but its objective {use}"
        )
    ratio, rest = divmod(self.start_steps, self.end_steps)
    if kind == "halving" and (rest or ratio < 2 or ratio & (ratio - 1)):
      raise ValueError(
        f"stages.{self.name} halves from start_steps={self.start_steps} to"
        f" end_steps={self.end_steps}; pass a start that is the end times 2,"
        " 4, 8, ..."
      )
    if len(set(self.num_steps)) < len(self.num_steps):
      raise ValueError(
        f"stages.{self.name}.num_steps is {self.num_steps}; pass different"
        " numbers of steps"
      )

  def _check_selection(self):
    if self.select and self.select.by == "held_out_loss" and not self.pairs:
      raise ValueError(
        f"stages.{self.name}.select.by is 'held_out_loss', but only pairs have"
        " a held-out set; pass 'distance'"
      )
    if self.select and self.objective.sampler is None:
      raise ValueError(
        f"stages.{self.name}.select is given, but its objective makes no"
        " images to select by; remove it"
      )


def trainings(stages: Iterable[Stage]) -> dict[str, Training]:
  """Finds the stages that train or load a network, by the name of the stage."""

  def keep(stage: Training) -> list[Training]:
    return [stage]

  def drop(stage: Stage) -> list[Training]:
    return []

  kept = (s.by_kind(train=keep, take=keep, make=drop) for s in stages)
  return {stage.name: stage for found in kept for stage in found}
