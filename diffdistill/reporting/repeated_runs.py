"""Runs that differ only in a seed are repeats, which one curve can show."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from diffdistill.evaluation.curves import Point
from diffdistill.reporting.gather import flat

# The fields of a config in which repeats may differ.
SEEDS = ("seed", "evaluation.seed")
Lines = Mapping[tuple[str, str], tuple[Point, ...]]


def repeats(configs: Mapping[str, Any]) -> dict[str, list[str]]:
  """The names of the runs of each group that differs only in seeds.

  Args:
    configs: the config of each run, by the name of the run.

  Returns:
    The names of the runs by the name of the group, such as "a, b, c". A run
    without repeats is a group of its own.
  """
  groups: dict[str, list[str]] = {}
  for name, config in configs.items():
    rest = {path: value for path, value in flat(config) if path not in SEEDS}
    groups.setdefault(repr(sorted(rest.items())), []).append(name)
  return {", ".join(names): names for names in groups.values()}


def merged(lines: Lines, groups: Mapping[str, Sequence[str]]) -> Lines:
  """The curves of groups of runs: medians, with the spread over the runs.

  Args:
    lines: the points by the name of the run and of the family of models.
    groups: the names of the runs of each group.
  """
  result: dict[tuple[str, str], tuple[Point, ...]] = {}
  for group, names in groups.items():
    families = dict.fromkeys(f for name, f in lines if name in names)
    for family in families:
      every: dict[float, list[Point]] = {}
      for name in names:
        for point in lines.get((name, family), ()):
          every.setdefault(point.x, []).append(point)
      result[group, family] = tuple(
        Point(
          x,
          statistics.median(point.y for point in points),
          min(point.least for point in points),
          max(point.most for point in points),
        )
        for x, points in sorted(every.items())
      )
  return result
