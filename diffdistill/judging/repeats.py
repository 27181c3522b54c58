"""The spread of a distance over evaluations that differ only in their seed."""

from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from diffdistill.evaluation.curves import Number, is_measured
from diffdistill.judging.judged_rows import FOLDER
from diffdistill.judging.summaries import PREFIX, SETTINGS, read_summary
from diffdistill.system.files import matching

# The least and the most distance, by model and number of steps.
Spreads = Mapping[tuple[str, int], tuple[Number, Number]]


def spreads(
  workdir: epath.Path, summary: Mapping[str, Any], say: Callable[[str], None]
) -> Spreads:
  """The least and the most distance of each model that was judged repeatedly.

  Args:
    workdir: the workdir of the run, which keeps all evaluations.
    summary: one evaluation, which may be on disk or not.
    say: receives one line for each damaged file.
  """
  repeats = [summary]
  for path in matching(workdir / FOLDER, f"{PREFIX}*.json"):
    try:
      other = read_summary(path)
    except ValueError as error:
      say(str(error))
      continue
    alike = all(
      other.get(name) == summary.get(name)
      for name in SETTINGS
      if name != "seed"
    )
    if alike and other.get("seed") != summary.get("seed"):
      repeats.append(other)
  distances: dict[tuple[str, int], list[Number]] = {}
  for repeat in repeats:
    for row in repeat["rows"]:
      value = row.get(summary["metric"])
      if is_measured(value):
        key = (row["model"], row["steps"])
        distances.setdefault(key, []).append(value)
  return {
    key: (min(each), max(each))
    for key, each in distances.items()
    if len(each) > 1
  }
