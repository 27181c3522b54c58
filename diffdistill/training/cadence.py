"""How often a run logs, saves and shows what it has."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from diffdistill.ranges import Range, Updates, check_ranges
from diffdistill.training.stage import Stage


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

  log: Updates = 100
  checkpoint: Annotated[int, Range(0, 10**9)] = 1000
  observe: Annotated[int, Range(0, 10**9)] = 0
  keep: Annotated[int, Range(1, 10**6)] = 2
  max_skipped: Annotated[int, Range(0, 10**9)] = 50
  stall_seconds: Annotated[int, Range(0, 10**7)] = 600

  def __post_init__(self):
    check_ranges(self, "cadence.")


def check_cadence(stages: Sequence[Stage], cadence: Cadence) -> None:
  """Refuses what would come in the middle of a call of several updates.

  Raises:
    ValueError: where that is so.
  """
  for stage in stages:
    length, select = stage.updates_per_call, stage.select
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
