"""What evaluation.json says: who is near the data, in how many steps."""

import dataclasses
from typing import Any

from diffdistill.evaluation.trust import distrust
from diffdistill.fields import Fields
from diffdistill.judging.summaries import is_summary
from diffdistill.reporting.scales import Number

LARGEST = 1e30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
  """An evaluation.

  Args:
    metric: the name of the distance, lower is better.
    facts: what else it says of itself: by what it was judged, on how much.
    rows: one per model and number of steps, the teacher's first.
  """

  metric: str
  facts: Fields
  rows: tuple[Fields, ...]

  @classmethod
  def of(cls, written: Any) -> "Judged | None":
    """What was written, or None where that is no evaluation."""
    if not is_summary(written):
      return None
    metric, rows = written["metric"], written["rows"]
    facts = {k: v for k, v in written.items() if k not in ("metric", "rows")}
    return cls(metric=metric, facts=facts, rows=tuple(rows))

  @property
  def teacher(self) -> str:
    return self.rows[0]["model"]

  @property
  def columns(self) -> list[str]:
    return list(dict.fromkeys(name for row in self.rows for name in row))

  @property
  def distrust(self) -> str | None:
    """Why its judge is not trusted; None if it is."""
    return distrust(self.facts)

  @property
  def noise(self) -> Number | None:
    """The distance between two samples of the data; None if not measured."""
    for name, value in self.facts.items():
      if name.startswith(f"{self.metric} of two samples"):
        return value if _is_distance(value) else None
    return None

  def curves(self, column: str) -> dict[str, list[tuple[Number, Number]]]:
    """(steps, value) by family, a student of each number of steps being one.

    Weights at the end of a round whose product is its best are left out.
    """
    result: dict[str, list[tuple[Number, Number]]] = {}
    for row in sorted(self.rows, key=lambda row: row["steps"]):
      if _is_distance(row.get(column)) and not is_last(row):
        family = row["model"].split("/")[0]
        point = (float(row["steps"]), float(row[column]))
        result.setdefault(family, []).append(point)
    first = self.teacher.split("/")[0]
    return dict(sorted(result.items(), key=lambda item: item[0] != first))

  def best(self) -> dict[int, Fields]:
    """The row of the best student at each number of steps."""
    result: dict[int, Fields] = {}
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

  def _counts(self, row: Fields) -> bool:
    return _is_distance(row.get(self.metric)) and not is_last(row)


def is_last(row: Fields) -> bool:
  """Whether it is of a round's last weights, where others are its product."""
  return row["model"].endswith(" last")


def _is_distance(value: object) -> bool:
  return (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    # NaN is not, and what is larger is no distance but an accident.
    and abs(value) < LARGEST
  )
