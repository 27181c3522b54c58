"""Every model of a run against the data and the teacher, step by step."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from diffdistill.evaluation.settings import Settings
from diffdistill.evaluation.speeds import BATCH, SPEED_UP, ratio, rounded
from diffdistill.images import from_uint8, to_uint8
from diffdistill.judging.contestants import Contestant
from diffdistill.judging.judge import Judge
from diffdistill.judging.judged_rows import (
  NOTHING_KEPT,
  JudgedRow,
  JudgedRows,
  Weights,
)
from diffdistill.judging.measured import Timed, measured

SHEET_COLUMNS = 12


def compare(
  contestants: Sequence[Contestant],
  judge: Judge,
  settings: Settings,
  say: Callable[[str], None],
  kept: JudgedRows = NOTHING_KEPT,
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
  """One row per model and number of steps, and images from the same noise.

  Each row that is made is kept before the next begins, and one that is kept is
  not made again.

  Args:
    contestants: the teacher, whose images at the most steps all others are
      compared with; then the students.
    judge: measures the images.
    settings: how many images of which noise.
    say: told each row as it is done.
    kept: the rows that are done; by default none are.

  Returns:
    (rows, float32 images `n h w c` in [-1, 1] by row title, for a sheet)

  Raises:
    ValueError: where the teacher is not judged at its most steps, nor can be.
  """
  rows, images = [], {}

  def make(turn: _Turn) -> JudgedRow:
    row = _judged(turn, judge, settings, kept.devices)
    kept.keep(row)
    return row

  for turn, row, made in _turns(contestants, kept, make):
    model, steps = turn.contestant, turn.num_steps
    name = f"{model.name:<28} {steps:>4} steps"
    if row is None and not rows:
      raise ValueError(
        f"{model.name} has not been judged at {steps} steps, and its weights"
        " were left behind; bring them here, as all are compared with it"
      )
    if row is None:
      say(f"{name}  is left out: its weights were left behind")
      continue
    words = {"model": model.name, "steps": steps}
    rows.append({**words, **row.columns, **model.facts, "devices": row.devices})
    if model.shown:
      images[f"{model.name}, {steps} steps"] = from_uint8(row.shown)
    before = "" if made else "  (judged before)"
    say(f"{name}  {judge.metric} {row.columns[judge.metric]:.3f}{before}")
  return _with_speed_up(rows), images


def _judged(
  turn: "_Turn", judge: Judge, settings: Settings, devices: str
) -> JudgedRow:
  """The row that is due, measured on these devices."""
  gap_images = min(settings.gap_images, settings.num_images)
  first = turn.first
  stream = Timed(
    turn.contestant.generator,
    turn.weights.params,
    turn.num_steps,
    seed=settings.seed,
    num_images=settings.num_images,
    keep=gap_images,
    between=judge.between,
  )
  return JudgedRow(
    made_with=turn.made_with,
    weights=turn.weights.fingerprint,
    devices=devices,
    columns=measured(stream, judge, first.target if first else None),
    shown=to_uint8(stream.first[:SHEET_COLUMNS]),
    target=stream.first[: 0 if first else gap_images],
  )


def unjudged(contestants: Sequence[Contestant], kept: JudgedRows) -> list[str]:
  """The names of the models of which `compare` would make a row."""
  result: list[str] = []

  def note(turn: _Turn) -> None:
    if turn.contestant.name not in result:
      result.append(turn.contestant.name)

  for _ in _turns(contestants, kept, note):
    pass
  return result


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Turn:
  """A row that is due.

  Args:
    contestant, num_steps: the model and its number of steps.
    weights: of the model.
    made_with: all that the row depends on but its weights.
    first: the row of the teacher at its most steps; None before it is there.
  """

  contestant: Contestant
  num_steps: int
  weights: Weights
  made_with: Mapping[str, Any]
  first: JudgedRow | None


def _turns(
  contestants: Sequence[Contestant],
  kept: JudgedRows,
  make: Callable[[_Turn], JudgedRow | None],
) -> Iterator[tuple[_Turn, JudgedRow | None, bool]]:
  """Every row in order: as it is kept, or else as `make` makes it.

  Yields:
    (turn, its row or None, whether the row was made now)
  """
  first: JudgedRow | None = None
  most = max(contestants[0].num_steps)
  for contestant in contestants:
    load = contestant.load if contestant.here else None
    weights = Weights(load, kept.fingerprint)
    for num_steps in sorted(contestant.num_steps, reverse=True):
      made_with = {
        **kept.made_with,
        "model": contestant.name,
        "steps": num_steps,
        "sampled": contestant.sampled,
        # The gap is to these images.
        "target": f"{most} steps of {first.weights}" if first else "",
      }
      turn = _Turn(
        contestant=contestant,
        num_steps=num_steps,
        weights=weights,
        made_with=made_with,
        first=first,
      )
      row = kept.take(made_with, weights)
      made = row is None and weights.here
      if made:
        row = make(turn)
      first = first or row
      yield turn, row, made


def _with_speed_up(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """The rows, over the first of them: the teacher at its most steps.

  Only speeds of the same devices and of one batch size are compared. Where all
  rows are of the same devices, they do not say of which. Speeds have the digits
  that their spread allows.
  """
  slowest = rows[0]
  alike = all(row["devices"] == slowest["devices"] for row in rows)
  result = []
  for row in rows:
    faster: dict[str, Any] = {SPEED_UP: None}
    if all(row.get(name) == slowest.get(name) for name in ("devices", BATCH)):
      faster = ratio(SPEED_UP, row, slowest)
    if row is slowest:
      faster = {SPEED_UP: 1.0}
    columns = {k: v for k, v in row.items() if k != "devices" or not alike}
    result.append(rounded({**columns, **faster}))
  return result
