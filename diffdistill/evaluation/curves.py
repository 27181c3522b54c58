"""Curves over sampler steps: their points, colours, dashes and markers."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from diffdistill.evaluation.palette import MARKERS
from diffdistill.evaluation.speeds import LEAST, MOST

Number = int | float
# A larger distance is not drawn, because it means that its computation failed.
LARGEST = 1e30
# A teacher's curve has this colour: the colour of text.
INK = -1


class Point(NamedTuple):
  """A value y at x, and its spread from least to most.

  Without a spread, least and most are equal to y.
  """

  x: Number
  y: Number
  least: Number
  most: Number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
  """A name in the legend and its lines.

  Args:
    name: the text of the legend.
    lines: the lines; the points of each are in the order of x.
    colour: an index into the colours of palette.py, or INK.
    marker: an index into the markers of palette.py.
    dash: an index into the dashes of palette.py.
  """

  name: str
  lines: tuple[tuple[Point, ...], ...]
  colour: int
  marker: int = 0
  dash: int = 0


def families(
  rows: Sequence[Mapping[str, Any]],
  column: str,
  spreads: Mapping[tuple[str, int], tuple[Number, Number]] | None = None,
) -> dict[str, tuple[Point, ...]]:
  """The points of each family of models, the teacher's first.

  The students halve/004, halve/002 and halve/001 are one family. If a round
  selected its best weights, its last weights are a model of their own, such as
  "halve/004 last", which is left out. So is "halve/004 so far", a round that
  still trains.

  Args:
    rows: the rows of an evaluation; the first one is the teacher's.
    column: the column of the value to draw. If a row has the columns
      `<column>_least` and `<column>_most`, they are the spread.
    spreads: the least and the most value of repeated evaluations, by model and
      number of steps.
  """
  found: dict[str, list[Point]] = {}
  for row in sorted(rows, key=lambda row: row["steps"]):
    value = row.get(column)
    if not is_measured(value) or is_aside(row):
      continue
    ends = (spreads or {}).get((row["model"], row["steps"]), (value, value))
    least, most = (
      each if is_measured(each := row.get(f"{column}{name}")) else end
      for name, end in zip((LEAST, MOST), ends, strict=True)
    )
    family = row["model"].split("/")[0]
    # The value may come from an evaluation that is not among the repeats.
    least, most = min(least, value), max(most, value)
    point = Point(float(row["steps"]), float(value), float(least), float(most))
    found.setdefault(family, []).append(point)
  teacher = rows[0]["model"].split("/")[0] if rows else ""
  names = sorted(found, key=lambda name: name != teacher)
  return {name: tuple(found[name]) for name in names}


def curves(
  points: Mapping[str, tuple[Point, ...]], teacher: str
) -> list[Curve]:
  """One curve per family; no two look alike, even without their colours.

  The teacher's curve is dashed, in the colour of text, with round markers.
  """
  # Markers for students, and dashes that follow if there are more students.
  markers, dashes = range(1, len(MARKERS)), (0, 2, 3)
  result, students = [], 0
  for name, line in points.items():
    if name == teacher:
      curve = Curve(name=name, lines=(line,), colour=INK, dash=1, marker=0)
    else:
      again, marker = divmod(students, len(markers))
      curve = Curve(
        name=name,
        lines=(line,),
        colour=students,
        marker=markers[marker],
        dash=dashes[again % len(dashes)],
      )
      students += 1
    result.append(curve)
  return result


def is_aside(row: Mapping[str, Any]) -> bool:
  """Whether a row has other weights than those that a finished round hands on.

  They are the last weights of a round that kept its best ones, or those of a
  round that still trains.
  """
  return row["model"].endswith((" last", " so far"))


def is_measured(value: object) -> TypeGuard[Number]:
  """Whether a value is a finite number of a plausible size."""
  return (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    and math.isfinite(value)
    and abs(value) < LARGEST
  )
