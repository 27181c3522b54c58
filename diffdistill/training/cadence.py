"""How often a run logs, saves checkpoints and shows images."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from diffdistill.ranges import Range, Updates, check_ranges
from diffdistill.training.stage import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cadence:
  """How often a run does things, in updates; 0 for never.

  Args:
    log: updates between two records of metrics, each with a progress line.
    checkpoint: updates between two checkpoints; a crash loses at most that
      many.
    observe: updates between two sample sheets. Each round also ends with a
      sheet.
    keep: how many checkpoints are kept while a round runs.
    max_skipped: the run stops if more updates in a row than this have gradients
      that are not finite.
    stall_seconds: the run counts as hung, and ends, if no update is finished in
      this time. An update that first compiles or reads may take six times as
      long.
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
  """Refuses an interval that is no multiple of the updates in one device call.

  Raises:
    ValueError: if a cadence is not a multiple of a stage's updates_per_call.
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
