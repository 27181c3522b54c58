"""Every model of a run against the data and the teacher, step by step."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from diffdistill.arrays import Params
from diffdistill.evaluation import grids
from diffdistill.evaluation.features import FeatureFn, Reference
from diffdistill.evaluation.frechet import Moments, frechet_distance
from diffdistill.evaluation.generator import Generator
from diffdistill.evaluation.settings import Settings
from diffdistill.evaluation.speeds import BATCH, SPEED_UP, ratio, rounded
from diffdistill.images import from_uint8, to_uint8
from diffdistill.judging.judged_rows import (
  NOTHING_KEPT,
  JudgedRow,
  JudgedRows,
  Weights,
)
from diffdistill.judging.measured import Timed, measured
from diffdistill.judging.summaries import (
  COPIES,
  CURVES,
  SHEET,
  keep_summary,
)

SHEET_COLUMNS = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
  """A model to judge.

  Args:
    name: of its round.
    num_steps: the numbers of steps to judge it at.
    generator: its sampler.
    load: gives its weights, when its turn comes.
    here: whether it can; where they were left behind, only what is judged of it
      already can be said.
    facts: more columns of its rows.
    shown: whether it is in the pictures too.
    sampled: names all that its images depend on besides weights and noise.
  """

  name: str
  num_steps: tuple[int, ...]
  generator: Generator
  load: Callable[[], Params]
  here: bool = True
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  shown: bool = True
  sampled: str = ""


def compare(
  teacher: Contestant,
  students: Sequence[Contestant],
  features: FeatureFn,
  reference: Reference,
  metric: str,
  kernel: str,
  settings: Settings,
  say: Callable[[str], None],
  kept: JudgedRows = NOTHING_KEPT,
  between: Callable[[], None] = lambda: None,
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
  """One row per model and number of steps, and images from the same noise.

  Each row that is made is kept before the next begins, and one that is kept is
  not made again.

  Args:
    teacher: judged first; its images at the most steps are the measure of
      the students' gap.
    students: judged in order.
    features: the metric's feature network.
    reference: of the data, by the same network.
    metric: the name of the distance, such as FD-classifier.
    kernel: the name of the kernel distance; empty where there is none.
    settings: see there.
    say: told each row as it is done.
    kept: the rows that are done; by default none are.
    between: called between batches; may raise, to leave.

  Returns:
    (rows, images by row name for a sheet)

  Raises:
    ValueError: where the teacher is not judged at its most steps, nor can be.
  """
  rows, images = [], {}
  most = max(teacher.num_steps)
  gap_images = min(settings.gap_images, settings.num_images)
  first: JudgedRow | None = None
  for contestant in (teacher, *students):
    weights = _weights(contestant, kept)
    for num_steps in sorted(contestant.num_steps, reverse=True):
      name = f"{contestant.name:<28} {num_steps:>4} steps"
      made_with = _made_with(contestant, num_steps, kept, most, first)
      row = kept.take(made_with, weights)
      before = "" if row is None else "  (judged before)"
      if row is None and weights.here:
        stream = Timed(
          contestant.generator,
          weights.params,
          num_steps,
          seed=settings.seed,
          num_images=settings.num_images,
          keep=gap_images,
          between=between,
        )
        target = first.target if first else None
        columns = measured(stream, features, reference, metric, kernel, target)
        row = JudgedRow(
          made_with=made_with,
          weights=weights.fingerprint,
          devices=kept.devices,
          columns=columns,
          shown=to_uint8(stream.first[:SHEET_COLUMNS]),
          target=stream.first[: 0 if first else gap_images],
        )
        kept.keep(row)
      if row is None and first is None:
        raise ValueError(
          f"{teacher.name} has not been judged at {most} steps, and its weights"
          " were left behind; bring them here, as all are compared with it"
        )
      if row is None:
        say(f"{name}  is left out: its weights were left behind")
        continue
      first = first or row
      rows.append(
        {
          "model": contestant.name,
          "steps": num_steps,
          **row.columns,
          **contestant.facts,
          "devices": row.devices,
        }
      )
      if contestant.shown:
        title = f"{contestant.name}, {num_steps} steps"
        images[title] = from_uint8(row.shown)
      say(f"{name}  {metric} {row.columns[metric]:.3f}{before}")
  return _with_speed_up(rows), images


def unjudged(
  teacher: Contestant, students: Sequence[Contestant], kept: JudgedRows
) -> list[str]:
  """The models of which `compare` would make a row."""
  result: list[str] = []
  most = max(teacher.num_steps)
  first: JudgedRow | None = None
  for contestant in (teacher, *students):
    weights = _weights(contestant, kept)
    for num_steps in sorted(contestant.num_steps, reverse=True):
      made_with = _made_with(contestant, num_steps, kept, most, first)
      row = kept.take(made_with, weights)
      if row is None and weights.here and contestant.name not in result:
        result.append(contestant.name)
      first = first or row
  return result


def _weights(contestant: Contestant, kept: JudgedRows) -> Weights:
  load = contestant.load if contestant.here else None
  return Weights(load, kept.fingerprint)


def _made_with(
  contestant: Contestant,
  num_steps: int,
  kept: JudgedRows,
  most: int,
  first: JudgedRow | None,
) -> dict[str, Any]:
  """All that a row depends on but its weights; `first` is of the target."""
  return {
    **kept.made_with,
    "model": contestant.name,
    "steps": num_steps,
    "sampled": contestant.sampled,
    # The gap is to these images.
    "target": f"{most} steps of {first.weights}" if first else "",
  }


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


def distance_of_halves(pooled: Float[np.ndarray, "n d"]) -> float:
  """The distance between two halves of shuffled features: what is noise."""
  half = len(pooled) // 2
  empty = Moments.empty(pooled.shape[1])
  return frechet_distance(
    empty.update(pooled[:half]), empty.update(pooled[half : 2 * half])
  )


def write_comparison(
  workdir: epath.Path,
  summary: dict[str, Any],
  rows: Sequence[dict[str, Any]],
  images: dict[str, np.ndarray],
  metric: str,
  say: Callable[[str], None],
) -> None:
  """The evaluation, its curves and images of the same noise, see summaries.py.

  Students of one family are one curve, each at its own steps; neither picture
  shows the last weights of a round that kept its best ones.
  """
  pictures = {SHEET: grids.as_png(grids.labelled_rows(images))}
  evaluation = {**summary, "metric": metric, "rows": list(rows)}
  try:
    from diffdistill.evaluation.drawing import as_png, distances

    pictures[CURVES] = as_png(distances(evaluation))
  except ImportError:
    path = workdir / COPIES[CURVES]
    say(f"{path} is not drawn without matplotlib; run `pip install matplotlib`")
  keep_summary(workdir, {**summary, "rows": list(rows)}, pictures, say)
