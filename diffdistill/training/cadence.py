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
    log: from one record of metrics and progress line to the next.
    checkpoint: from one checkpoint to the next; a crash loses at most so many.
    observe: from one sample sheet to the next. Each round ends with a sheet in
      any case.
    keep: how many checkpoints are kept while a round runs.
    max_skipped: the run stops after more updates in a row than this whose
      gradients are not finite.
    stall_seconds: if no update is done for so long, the run counts as hung and
      ends. An update that compiles or reads first may take six times as long.
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
  """Refuses a cadence that falls into the middle of a call of several updates.

  Raises:
    ValueError: for such a cadence.
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
