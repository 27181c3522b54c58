"""Speeds: a median and its spread, rounded to the digits that are certain.

A single timing can be wrong by a factor of two. So a speed is the median of
several timings of one batch size, after a first batch that is not counted.
Fields whose names end in `_least` and `_most` have the slowest and the fastest
timing. All three are rounded to the first digit of half their difference: 412.3
with a spread from 380.1 to 440.2 becomes 410.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Number = int | float
# The least number of timings for a median and a spread.
FEWEST = 3
# No speed is shown with more digits, because clocks are not so exact.
MOST_DIGITS = 3
LEAST, MOST = "_least", "_most"
SPEED, SPEED_UP = "images_per_second", "speed_up"
# Fields that say how a speed was measured; tables do not show them.
TIMED, BATCH = "timed_batches", "timed_batch_size"


def speeds(
  name: str, per_timing: Number, seconds: Sequence[Number]
) -> dict[str, float]:
  """The median, the lowest and the highest speed, by field name.

  Args:
    name: the name of the speed.
    per_timing: the number of things done in one timing, such as images.
    seconds: the seconds of each timing.
  """
  # A coarse clock may measure 0 seconds, so divide by more than 0.
  each = np.maximum(np.array(seconds), 1e-9)
  return {
    name: float(per_timing / np.median(each)),
    f"{name}{LEAST}": float(per_timing / each.max()),
    f"{name}{MOST}": float(per_timing / each.min()),
  }


def ratio(
  name: str, row: Mapping[str, Any], other: Mapping[str, Any]
) -> dict[str, float]:
  """How many times faster one row is than another, with the widest spread."""
  return {
    name: row[SPEED] / other[SPEED],
    f"{name}{LEAST}": row[f"{SPEED}{LEAST}"] / other[f"{SPEED}{MOST}"],
    f"{name}{MOST}": row[f"{SPEED}{MOST}"] / other[f"{SPEED}{LEAST}"],
  }


def rounded(fields: Mapping[str, Any]) -> dict[str, Any]:
  """The fields, each rounded to the digits that its spread allows."""
  result = dict(fields)
  for name, (value, least, most) in _spreads(fields).items():
    unit = _exponent(value, least, most)
    for key, each in (
      (name, value),
      (f"{name}{LEAST}", least),
      (f"{name}{MOST}", most),
    ):
      result[key] = round(each, -unit)
  return result


def readable(fields: Mapping[str, Any]) -> dict[str, Any]:
  """The fields for a table; a value and its spread become one text.

  The fields that say how a speed was measured are left out.
  """
  spreads = _spreads(fields)
  hidden = {TIMED, BATCH}
  for name in spreads:
    hidden |= {f"{name}{LEAST}", f"{name}{MOST}"}
  return {
    name: shown(*spreads[name]) if name in spreads else value
    for name, value in fields.items()
    if name not in hidden
  }


def shown(value: Number, least: Number, most: Number) -> str:
  """A value and its spread, such as "410 (380 to 440)"."""
  unit = _exponent(value, least, most)
  texts = [
    f"{round(each, -unit):,.{max(0, -unit)}f}" for each in (value, least, most)
  ]
  if texts[0] == texts[1] == texts[2]:
    return texts[0]
  return f"{texts[0]} ({texts[1]} to {texts[2]})"


def _spreads(
  fields: Mapping[str, Any],
) -> dict[str, tuple[Number, Number, Number]]:
  """The value, least and most of each field that has all three, by name."""
  result: dict[str, tuple[Number, Number, Number]] = {}
  for name in fields:
    value, least, most = (
      _number(fields.get(f"{name}{end}")) for end in ("", LEAST, MOST)
    )
    if value is not None and least is not None and most is not None:
      result[name] = value, least, most
  return result


def _number(value: object) -> Number | None:
  """The value if it is a finite number, otherwise None."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return None
  return value if math.isfinite(value) else None


def _exponent(value: Number, least: Number, most: Number) -> int:
  """The power of ten of the last digit that is shown."""
  if not value:
    return 0
  first = math.floor(math.log10(abs(value)))
  last = first - MOST_DIGITS + 1
  half = abs(most - least) / 2
  if half:
    last = max(last, math.floor(math.log10(half)))
  return min(last, first)
