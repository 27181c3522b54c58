"""Compares every model of a run with the data and with the teacher."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from diffdistill.evaluation.settings import Settings
from diffdistill.evaluation.speeds import BATCH, SPEED_UP, ratio, rounded
from diffdistill.evaluation.titles import row_titles
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
  """Makes one row per model and number of steps, and images of the same noise.

  Each new row is kept on disk before the next one begins. A kept row is not
  made again.

  Args:
    contestants: the teacher, then the students. All are compared with the
      teacher's images at its most steps.
    judge: measures the images.
    settings: the number of images and the seed of their noise.
    say: receives one line for each finished row.
    kept: the rows that earlier evaluations kept; by default none.

  Returns:
    The rows; and for a sheet the images of each row, by the row's title, as
    float32 `n h w c` in [-1, 1].

  Raises:
    ValueError: if the teacher's row at its most steps is missing and its
      weights were left behind.
  """
  rows, titled, images = [], [], []

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
        " were left behind; bring the weights here, because all models are"
        " compared with this one"
      )
    if row is None:
      say(f"{name}  is left out: its weights were left behind")
      continue
    words = {"model": model.name, "steps": steps}
    rows.append({**words, **row.columns, **model.facts, "devices": row.devices})
    if model.shown:
      titled.append((model.name, steps))
      images.append(from_uint8(row.shown))
    before = "" if made else "  (judged before)"
    say(f"{name}  {judge.metric} {row.columns[judge.metric]:.3f}{before}")
  sheet = dict(zip(row_titles(titled), images, strict=True))
  return _with_speed_up(rows), sheet


def _judged(
  turn: "_Turn", judge: Judge, settings: Settings, devices: str
) -> JudgedRow:
  """Makes and measures the images of one row of the comparison."""
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
  """The names of the models for which `compare` would make a new row."""
  result: list[str] = []

  def note(turn: _Turn) -> None:
    if turn.contestant.name not in result:
      result.append(turn.contestant.name)

  for _ in _turns(contestants, kept, note):
    pass
  return result


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Turn:
  """A row of the comparison: a model at a number of steps, and its settings.

  Args:
    contestant, num_steps: the model and its number of steps.
    weights: the weights of the model.
    made_with: the settings that the row depends on.
    first: the row of the teacher at its most steps; None until it is made.
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
  """Gives every row in order: the kept row, or else the row that `make` makes.

  Yields:
    A description of the row, the row or None, and whether it was made now.
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
        # The teacher gap is the difference from the images of this first row.
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
  """Adds to each row its speed-up over the first row.

  The first row is the teacher at its most steps. Only speeds of the same
  devices and the same batch size are compared. If all rows have the same
  devices, the column of devices is left out. Speeds are rounded to the digits
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
