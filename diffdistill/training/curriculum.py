"""Stages and rounds: what is trained, from what, for how long."""

import dataclasses
import zlib
from collections.abc import Mapping

from diffdistill.objectives.objective import Objective
from diffdistill.training.optimizers import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
  """One training, with a directory and a final result of its own.

  Args:
    name: "teacher", or "halve/016" for the student of 16 steps.
    stage: the name of its stage.
    num_updates: its length.
    num_steps: of the student's sampler; 0 where the stage has no rounds.
    frozen: for each frozen name, the round whose product it is.
  """

  name: str
  stage: str
  num_updates: int
  num_steps: int
  frozen: Mapping[str, str]

  @property
  def code(self) -> int:
    """A number of this round's name, to derive keys and data order from."""
    return zlib.crc32(self.name.encode()) & 0x7FFFFFFF


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """One line of a recipe.

  Args:
    name: of the stage, and of its round or folder of rounds.
    objective: what is minimised.
    optimizer: how.
    num_updates: per round.
    batch_size: images per update, over all devices.
    frozen: for each name the objective needs, the stage that made it.
    start_steps: the teacher's steps before the first halving; 0 for a stage
      that is one round.
    end_steps: the last student's steps.
    long_rounds: rounds to this many student steps or fewer take twice
      num_updates (Salimans & Ho 2022, section 5.2: the 2-step and 1-step
      rounds); 0 for none.
  """

  name: str
  objective: Objective
  optimizer: Optimizer
  num_updates: int
  batch_size: int
  frozen: Mapping[str, str] = dataclasses.field(default_factory=dict)
  start_steps: int = 0
  end_steps: int = 1
  long_rounds: int = 2

  def __post_init__(self):
    for field in ("num_updates", "batch_size"):
      if getattr(self, field) < 1:
        raise ValueError(
          f"stages.{self.name}.{field} is {getattr(self, field)}; pass 1 or"
          " more"
        )
    if self.batch_size % self.optimizer.accumulate:
      raise ValueError(
        f"stages.{self.name}.batch_size is {self.batch_size}, which"
        f" accumulate={self.optimizer.accumulate} does not divide; pass a"
        " multiple of it"
      )
    missing = set(self.objective.needs) ^ set(self.frozen)
    if missing:
      raise ValueError(
        f"stages.{self.name}.frozen names {sorted(self.frozen)}; its objective"
        f" needs exactly {sorted(self.objective.needs)}"
      )
    if self.long_rounds < 0:
      raise ValueError(
        f"stages.{self.name}.long_rounds is {self.long_rounds}; pass 0 or more"
      )
    if self.objective.halves:
      self._check_halving()
    elif self.start_steps:
      raise ValueError(
        f"stages.{self.name}.start_steps is {self.start_steps}, but its"
        " objective has no rounds; remove it"
      )

  def _check_halving(self):
    ratio, rest = divmod(self.start_steps, max(self.end_steps, 1))
    if self.end_steps < 1 or rest or ratio < 2 or ratio & (ratio - 1):
      raise ValueError(
        f"stages.{self.name} halves from start_steps={self.start_steps} to"
        f" end_steps={self.end_steps}; pass a start that is the end times 2,"
        " 4, 8, ..."
      )

  def rounds(self, last_round: Mapping[str, str]) -> tuple[Round, ...]:
    """This stage's rounds in order.

    Args:
      last_round: for each earlier stage, the name of its last round.

    Raises:
      ValueError: where `frozen` names no earlier stage.
    """
    for stage in self.frozen.values():
      if stage not in last_round:
        raise ValueError(
          f"stages.{self.name}.frozen names {stage!r}, which is no earlier"
          f" stage; the earlier ones are {', '.join(last_round) or 'none'}"
        )
    frozen = {n: last_round[stage] for n, stage in self.frozen.items()}
    if not self.start_steps:
      return (self._round(self.name, self.num_updates, 0, frozen),)
    result = []
    num_steps = self.start_steps
    while num_steps > self.end_steps:
      num_steps //= 2
      doubled = num_steps <= self.long_rounds
      name = f"{self.name}/{num_steps:03d}"
      result.append(
        self._round(name, self.num_updates * (1 + doubled), num_steps, frozen)
      )
      frozen = {**frozen, "teacher": name}
    return tuple(result)

  def _round(
    self, name: str, num_updates: int, num_steps: int, frozen: dict[str, str]
  ) -> Round:
    return Round(
      name=name,
      stage=self.name,
      num_updates=num_updates,
      num_steps=num_steps,
      frozen=frozen,
    )


def curriculum(stages: tuple[Stage, ...]) -> tuple[tuple[Stage, Round], ...]:
  """Every round of a run, in order, each with its stage."""
  last_round: dict[str, str] = {}
  makes_images: dict[str, bool] = {}
  result = []
  for stage in stages:
    for name, source in stage.frozen.items():
      if makes_images.get(source, True) != (name != "classifier"):
        raise ValueError(
          f"stages.{stage.name}.frozen takes its {name} from {source!r}, which"
          " makes something else; name another stage"
        )
    makes_images[stage.name] = stage.objective.sampler is not None
    rounds = stage.rounds(last_round)
    result.extend((stage, round_) for round_ in rounds)
    last_round[stage.name] = rounds[-1].name
  return tuple(result)
