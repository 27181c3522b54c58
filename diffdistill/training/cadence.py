"""How often a run logs, saves and shows what it has."""

import dataclasses
from collections.abc import Sequence

from diffdistill.training.stage import Pairs, Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cadence:
  """How often things happen, in updates; 0 for never.

  Args:
    log: a record of metrics and the progress line.
    checkpoint: a checkpoint; one is lost at most by a crash.
    observe: a sample sheet; one comes at the end of each round in any case.
    keep: checkpoints kept while a round runs.
    max_skipped: updates in a row that may be non-finite before the run stops.
    stall_seconds: from one update to the next before the run counts as hung and
      ends; what compiles or reads first is given six times as long.
  """

  log: int = 100
  checkpoint: int = 1000
  observe: int = 0
  keep: int = 2
  max_skipped: int = 50
  stall_seconds: int = 600

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if getattr(self, field.name) < 0:
        raise ValueError(
          f"cadence.{field.name} is {getattr(self, field.name)}; pass 0 or more"
        )
    if self.log < 1 or self.keep < 1:
      raise ValueError(
        f"cadence.log is {self.log} and cadence.keep {self.keep}; pass 1 or"
        " more"
      )


def check_cadence(stages: Sequence[Stage | Pairs], cadence: Cadence) -> None:
  """Refuses what would come in the middle of a call of several updates.

  Raises:
    ValueError: where that is so.
  """
  for stage in stages:
    length = 1 if isinstance(stage, Pairs) else stage.updates_per_call
    select = None if isinstance(stage, Pairs) else stage.select
    for name, every in (
      ("cadence.log", cadence.log),
      ("cadence.checkpoint", cadence.checkpoint),
      ("cadence.observe", cadence.observe),
      (f"stages.{stage.name}.select.every", select.every if select else 0),
    ):
      if every % length:
        raise ValueError(
          f"{name} is {every}, but stages.{stage.name} makes {length} updates"
          f" a call; pass a multiple of {length}"
        )
