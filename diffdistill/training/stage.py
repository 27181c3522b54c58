"""One line of a recipe: what is trained, from what, for how long."""

import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Annotated

from diffdistill.diffusion.guidance import Guidance
from diffdistill.objectives.objective import Objective, product_tree
from diffdistill.ranges import (
  BatchSize,
  Images,
  Minutes,
  Range,
  Steps,
  Updates,
  check_ranges,
)
from diffdistill.sampling.sampler import Sampler
from diffdistill.training.optimizers import Optimizer

# Frozen weights that no stage of the run made: "path:DIR" is a finished round
# of another run, "imported:FILE" a file of another framework.
OUTSIDE = ("path:", "imported:")
# Of the teacher's gradients; kept with it for papers that weigh by them.
SECOND_MOMENTS = "second_moments"
SCORES = ("held_out_loss", "distance")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
  """One training, with a directory and a final result of its own.

  Args:
    name: "teacher", or "halve/016" for the student of 16 steps.
    stage: the name of its stage.
    num_updates: its length, or its most where it ends by the clock; 0 for a
      round of pairs.
    num_steps: of the student's sampler; 0 where it has no number of steps.
    frozen: for each frozen name, the round whose product it is, or a place
      outside the run.
    guided: whether its teacher is to be guided: not where that is a student of
      this run. One from outside counts as a teacher.
    seconds: after which it ends, see clock.py; 0 where it does not.
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
    """A number of this round's name, to derive keys and data order from."""
    return zlib.crc32(self.name.encode()) & 0x7FFFFFFF


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
  """Which of a round's weights become its product: those of the best score.

  The weights at the end are kept too, as `last_<name>`.

  Args:
    by: "held_out_loss" of pairs, or "distance", the Frechet distance on the
      run's classifier.
    every: updates between scores; the end of the round has one too.
    patience: scores in a row without a better one after which the round ends;
      0 never.
    num_images: that a distance is measured on.
  """

  by: str
  every: Updates
  patience: Annotated[int, Range(0, 10**6)] = 0
  num_images: Images = 1000

  def __post_init__(self):
    if self.by not in SCORES:
      raise ValueError(f"by is {self.by!r}; pass one of {', '.join(SCORES)}")
    check_ranges(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
  """A stage that writes (noise, the teacher's image) for others to learn from.

  Args:
    name: of the stage, and of its one round.
    sampler: the teacher's.
    num_steps: of the sampler.
    guidance: of the teacher.
    num_pairs: to train on, all different.
    held_out: pairs kept apart, for held-out losses.
    shard_size: pairs per file; what a killed run makes again at most.
    batch_size: made at a time, on all devices.
    store_noise: False draws the noise again from its key when it is read, and
      saves two thirds of the disk.
    max_gigabytes: of disk; where all pairs take more, training uses a rolling
      pool that fits. 0 for no limit.
    path: where they go, if not in the workdir.
    minutes: that making them may take; as many shards as fit into it are made,
      one at least. 0 for all.
    frozen: which stage made the teacher.
  """

  name: str
  sampler: Sampler
  num_steps: Steps
  num_pairs: Annotated[int, Range(1, 10**9)]
  held_out: Annotated[int, Range(0, 10**9)]
  shard_size: Annotated[int, Range(1, 10**7)]
  batch_size: BatchSize
  guidance: Guidance = dataclasses.field(default_factory=Guidance)
  store_noise: bool = True
  max_gigabytes: Annotated[float, Range(0, 10**6)] = 0.0
  path: str = ""
  minutes: Minutes = 0.0
  frozen: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: {"teacher": "teacher"}
  )

  def __post_init__(self):
    check_ranges(self)
    if self.minutes and self.max_gigabytes:
      raise ValueError(
        f"minutes is {self.minutes} and max_gigabytes {self.max_gigabytes}, but"
        " how many pairs there will be in a rolling pool must be known from the"
        " start; pass 0 for one of them"
      )
    if not self.sampler.deterministic:
      raise ValueError(
        f"sampler is {type(self.sampler).__name__}, which adds noise of its"
        " own; pairs need an image that is a function of its noise: pass ddim,"
        " or heun with churn=0"
      )
    if self.num_pairs % self.shard_size:
      raise ValueError(
        f"num_pairs is {self.num_pairs}, which shard_size={self.shard_size}"
        " does not divide; pass a multiple of it"
      )
    if set(self.frozen) != {"teacher"}:
      raise ValueError(
        f"frozen names {sorted(self.frozen)}; pairs need exactly a teacher;"
        " pass that"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """One line of a recipe.

  Args:
    name: of the stage, and of its round or folder of rounds.
    objective: what is minimised.
    optimizer: how, for every tree that has none of its own.
    optimizers: of single trees, by name.
    accumulate: parts that the batch is cut into, one after the other.
    num_updates: per round; where it ends by the clock, the most.
    batch_size: images per update, over all devices.
    frozen: for each name the objective needs, the stage that made it; or one
      of its rounds ("halve/008"), or a place outside the run.
    source: a place outside the run whose weights are this stage's product as
      they are: nothing is trained.
    start_steps: the teacher's steps before the first halving.
    end_steps: the last student's steps.
    num_steps: of the students of a stage that trains "each" by itself.
    long_rounds: rounds to this many student steps or fewer take twice
      num_updates (Salimans & Ho 2022, section 5.2: the 2-step and 1-step
      rounds); 0 for none.
    minutes: after which the stage ends, its learning rate annealed; its rounds
      share them, long ones with two parts. 0 where it has its num_updates,
      which are the most in any case; a round of fewer than four calls is too
      short to be timed.
    pairs: the stage whose pairs are the data, where the objective consumes
      pairs.
    select: which weights become the product; by default those at the end.
    updates_per_call: of the devices, one after the other without the host in
      between, which gains where an update takes milliseconds; whole cycles of
      an alternating paper. Every cadence is a multiple of it.
    teacher_dtype: "bfloat16" holds the frozen teacher in half the memory, once
      the student has been made of it.
  """

  name: str
  objective: Objective
  optimizer: Optimizer
  num_updates: Updates
  batch_size: BatchSize
  frozen: Mapping[str, str] = dataclasses.field(default_factory=dict)
  source: str = ""
  start_steps: Annotated[int, Range(0, 10**5)] = 0
  end_steps: Steps = 1
  long_rounds: Annotated[int, Range(0, 10**5)] = 2
  num_steps: tuple[Steps, ...] = ()
  minutes: Minutes = 0.0
  pairs: str = ""
  select: Selection | None = None
  updates_per_call: Annotated[int, Range(1, 10**6)] = 1
  optimizers: Mapping[str, Optimizer] = dataclasses.field(default_factory=dict)
  accumulate: Annotated[int, Range(1, 10**6)] = 1
  teacher_dtype: str = "float32"

  def __post_init__(self):
    check_ranges(self, f"stages.{self.name}.")
    if self.batch_size % (self.accumulate * self.objective.group):
      raise ValueError(
        f"stages.{self.name}.batch_size is {self.batch_size}, which"
        f" accumulate={self.accumulate} times groups of {self.objective.group}"
        " does not divide; pass a multiple of it"
      )
    given = {*self.objective.starts, *self.objective.needs}
    if given != set(self.frozen):
      raise ValueError(
        f"stages.{self.name}.frozen names {sorted(self.frozen)}; its objective"
        f" needs exactly {sorted(given)}; pass those"
      )
    self._check_optimizers()
    if self.source and (given or not self.source.startswith(OUTSIDE)):
      raise ValueError(
        f"stages.{self.name}.source is {self.source!r}; pass imported:PATH or"
        " path:DIR, to a stage of a teacher or a classifier"
      )
    self._check_execution()
    kind = self.objective.rounds
    for field, value, wanted in (
      ("start_steps", self.start_steps, kind == "halving"),
      ("num_steps", self.num_steps, kind == "each"),
      ("pairs", self.pairs, self.objective.consumes == "pairs"),
    ):
      if bool(value) != wanted:
        use = "needs it; pass one" if wanted else "has no use for it; remove it"
        raise ValueError(
          f"stages.{self.name}.{field} is {value!r}, but its objective {use}"
        )
    if kind == "halving":
      self._check_halving()
    if len(set(self.num_steps)) < len(self.num_steps):
      raise ValueError(
        f"stages.{self.name}.num_steps is {self.num_steps}; pass different"
        " numbers of steps"
      )
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

  def optimizer_of(self, name: str) -> Optimizer:
    """The optimizer of a tree."""
    return self.optimizers.get(name, self.optimizer)

  @property
  def all_optimizers(self) -> dict[str, Optimizer]:
    """The optimizer of every tree, by name."""
    return {name: self.optimizer_of(name) for name in self.objective.trees}

  def _check_optimizers(self):
    trees = self.objective.trees
    for name, optimizer in self.optimizers.items():
      path = f"stages.{self.name}.optimizers.{name}"
      if name not in trees:
        raise ValueError(
          f"{path} is of no tree that is trained; pass some of"
          f" {', '.join(trees)}"
        )
      ours, theirs = self.optimizer.averages, optimizer.averages
      if name != product_tree(self.objective) and ours != theirs:
        raise ValueError(
          f"{path} keeps the averages {dict(theirs)}, but only the product"
          f" {product_tree(self.objective)} has them; leave ema_decay and"
          " other_ema_decays out"
        )

  def _check_execution(self):
    cycle = len(self.objective.cycle)
    if self.updates_per_call > 1 and self.updates_per_call % cycle:
      raise ValueError(
        f"stages.{self.name}.updates_per_call is {self.updates_per_call}, but"
        f" its trees {', '.join(self.objective.trees)} take turns; pass 1 or a"
        f" multiple of {cycle}"
      )
    if self.teacher_dtype not in ("float32", "bfloat16"):
      raise ValueError(
        f"stages.{self.name}.teacher_dtype is {self.teacher_dtype!r}; pass"
        " float32 or bfloat16"
      )
    if self.teacher_dtype == "float32":
      return
    if "teacher" not in self.objective.needs:
      raise ValueError(
        f"stages.{self.name}.teacher_dtype is {self.teacher_dtype!r}, but its"
        " objective has no teacher; remove it"
      )
    # Such papers take them in float32, so nothing would be saved.
    if any(
      self.objective.passes(turn, 1, True).tangent
      for turn in self.objective.cycle
    ):
      raise ValueError(
        f"stages.{self.name}.teacher_dtype is {self.teacher_dtype!r}, but its"
        " objective takes derivatives along the teacher's weights; pass float32"
      )

  def _check_halving(self):
    ratio, rest = divmod(self.start_steps, self.end_steps)
    if rest or ratio < 2 or ratio & (ratio - 1):
      raise ValueError(
        f"stages.{self.name} halves from start_steps={self.start_steps} to"
        f" end_steps={self.end_steps}; pass a start that is the end times 2,"
        " 4, 8, ..."
      )

  def rounds(
    self, frozen: Mapping[str, str], guided: bool
  ) -> tuple[Round, ...]:
    """This stage's rounds in order.

    Args:
      frozen: for each frozen name, the round that made it.
      guided: whether the teacher is no student yet.
    """
    make = functools.partial(self._round, frozen=frozen, guided=guided)
    kind = self.objective.rounds
    if kind == "one":
      return (make(self.name, 0),)
    if kind == "one_step":
      return (make(f"{self.name}/001", 1),)
    if kind == "each":
      return tuple(make(f"{self.name}/{n:03d}", n) for n in self.num_steps)
    result = []
    for num_steps in self._students():
      name = f"{self.name}/{num_steps:03d}"
      result.append(self._round(name, num_steps, frozen, guided))
      frozen, guided = {**frozen, "teacher": name}, False
    return tuple(result)

  def _students(self) -> list[int]:
    """The numbers of steps of its rounds; 0 where they have none."""
    if self.objective.rounds != "halving":
      return list(self.num_steps) or [0]
    halvings = (self.start_steps // self.end_steps).bit_length() - 1
    return [self.start_steps >> i for i in range(1, halvings + 1)]

  def _parts(self, num_steps: int) -> int:
    """How many times num_updates a round has."""
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
