"""Reads an evaluation for a report."""

import dataclasses

from etils import epath

from diffdistill.evaluation.curves import (
  Number,
  Point,
  families,
  is_aside,
  is_measured,
)
from diffdistill.evaluation.trust import distrust
from diffdistill.fields import Fields
from diffdistill.judging.repeats import Spreads, spreads
from diffdistill.judging.summaries import FILE, read_summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
  """An evaluation of the models of one run.

  Args:
    summary: the content of evaluation.json.
    spreads: the least and the most distance over evaluations that differ only
      in their seed, by model and number of steps.
  """

  summary: Fields
  spreads: Spreads = dataclasses.field(default_factory=dict)

  @property
  def metric(self) -> str:
    """The name of the distance; lower is better."""
    return self.summary["metric"]

  @property
  def rows(self) -> list[Fields]:
    """One row for each model and number of steps, the teacher's first."""
    return self.summary["rows"]

  @property
  def facts(self) -> Fields:
    """The settings of the evaluation and the facts about its judge."""
    return {
      k: v for k, v in self.summary.items() if k not in ("metric", "rows")
    }

  @property
  def teacher(self) -> str:
    return self.rows[0]["model"]

  @property
  def distrust(self) -> str | None:
    """The reason why the judge is not trusted; None if it is trusted."""
    return distrust(self.facts)

  def points(self, column: str) -> dict[str, tuple[Point, ...]]:
    """The points of each family's curve."""
    spreads = self.spreads if column == self.metric else {}
    return families(self.rows, column, spreads)

  def best(self) -> dict[int, Fields]:
    """The row of the best student at each number of steps.

    It has no rows if the judge is not trusted.
    """
    result: dict[int, Fields] = {}
    if self.distrust is not None:
      return result
    for row in self.rows:
      if "/" in row["model"] and self._counts(row):
        steps = row["steps"]
        if steps not in result or row[self.metric] < result[steps][self.metric]:
          result[steps] = row
    return dict(sorted(result.items()))

  def of_teacher(self) -> dict[int, Fields]:
    """The teacher's rows by number of steps."""
    rows = [
      row
      for row in self.rows
      if row["model"] == self.teacher and self._counts(row)
    ]
    return {row["steps"]: row for row in sorted(rows, key=lambda r: r["steps"])}

  def nearest_teacher(self) -> tuple[int, Number | None]:
    """The steps and distance of the teacher's best row; else 0 and None."""
    rows = self.of_teacher().items()
    near = min(rows, key=lambda item: item[1][self.metric], default=None)
    return (near[0], near[1][self.metric]) if near else (0, None)

  def _counts(self, row: Fields) -> bool:
    return is_measured(row.get(self.metric)) and not is_aside(row)


def largest_evaluation(workdir: epath.Path) -> Judged:
  """The evaluation of a run with the most images, which reports also show.

  Raises:
    ValueError: if there is no evaluation, or a damaged one.
  """
  notes: list[str] = []
  judged = read_judged(workdir / FILE, notes)
  if judged is None:
    raise ValueError(
      notes[0] if notes else f"{workdir} has no evaluation yet; evaluate first"
    )
  return judged


def read_judged(path: epath.Path, notes: list[str]) -> Judged | None:
  """Reads an evaluation from a file, with the spread of its repeats.

  Args:
    path: the path of evaluation.json; the repeats are in the folder beside it.
    notes: a list to which problems are added.
  """
  if not path.exists():
    return None
  try:
    summary = read_summary(path)
  except ValueError as error:
    notes.append(f"{error}.")
    return None
  found = spreads(
    path.parent, summary, lambda problem: notes.append(f"{problem}.")
  )
  return Judged(summary=summary, spreads=found)
