"""The numbers of a page as plain values for a JSON file."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from diffdistill.evaluation.curves import is_aside
from diffdistill.evaluation.speeds import LEAST, MOST, SPEED_UP, rounded
from diffdistill.fields import Fields
from diffdistill.reporting.costs import Cost, total
from diffdistill.reporting.gather import RoundLog, Run, is_number
from diffdistill.reporting.judged import Judged
from diffdistill.version import VERSION


def numbers(
  runs: Sequence[Run],
  spent: Mapping[str, Mapping[str, Cost]],
  notes: Mapping[str, Sequence[str]],
) -> Fields:
  """The numbers of one run; for several runs, a list of them under "runs".

  Unknown values and values that are not finite are null.
  """
  each = [_run(run, spent[run.name], notes[run.name]) for run in runs]
  made = each[0] if len(each) == 1 else {"runs": each}
  return {"diffdistill": VERSION, **_plain(made)}


def _run(
  run: Run, spent: Mapping[str, Cost], notes: Sequence[str]
) -> dict[str, Any]:
  data = run.config.get("data")
  source = data.get("source") if isinstance(data, dict) else None
  whole = total(spent)
  return {
    "name": run.name,
    "written": run.written.isoformat() if run.written else None,
    "run": run.config.get("run"),
    "data": source.get("kind") if isinstance(source, dict) else None,
    "seed": run.config.get("seed"),
    "devices": list(whole.devices),
    "stages": {
      stage: {
        **_cost(spent[stage]),
        "rounds": {log.name: _round(log) for log in logs},
      }
      for stage, logs in run.stages.items()
    },
    "total": _cost(whole),
    "evaluation": None if run.judged is None else _evaluation(run.judged),
    "notes": list(notes),
  }


def _cost(cost: Cost) -> dict[str, Any]:
  return {
    **dataclasses.asdict(cost),
    "share_of_peak": cost.share_of_peak,
    "lost": cost.lost,
  }


def _round(log: RoundLog) -> dict[str, Any]:
  return {
    "state": log.state,
    "unit": log.unit,
    "done": log.done,
    "planned": log.planned,
  }


def _evaluation(judged: Judged) -> dict[str, Any]:
  """The evaluation, with two more columns in each row.

  The new columns are the row's distance divided by the teacher's least
  distance, and the row's speed-up divided by the ratio of steps.
  """
  most = max(r["steps"] for r in judged.rows if r["model"] == judged.teacher)
  _, near = judged.nearest_teacher()
  rows: list[dict[str, Any]] = [
    {
      **row,
      "ratio_to_teacher": _over(row.get(judged.metric), near),
      **_over_ratio(row, most / row["steps"]),
    }
    for row in judged.rows
  ]
  # Compare no speeds of other devices, and no models of a round's last weights.
  by_steps: dict[int, list[dict[str, Any]]] = {}
  for row in rows:
    if not is_aside(row) and row.get("devices") == rows[0].get("devices"):
      by_steps.setdefault(row["steps"], []).append(row)
  return {
    "metric": judged.metric,
    **judged.facts,
    "teacher_most_steps": most,
    "sampling": [
      {"steps": steps, **_sampling(alike)}
      for steps, alike in sorted(by_steps.items())
    ],
    "rows": rows,
  }


def _sampling(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """For each number of steps, the median sampling speed over all models."""
  result: dict[str, Any] = {"models": len(rows)}
  for name in ("images_per_second", "speed_up", "speed_up_over_ratio"):
    for end, choose in (
      ("", statistics.median),
      (LEAST, min),
      (MOST, max),
    ):
      key = f"{name}{end}"
      known = [row[key] for row in rows if is_number(row.get(key))]
      if known or not end:
        result[key] = choose(known) if known else None
  return rounded(result)


def _over_ratio(row: Mapping[str, Any], ratio: float) -> dict[str, Any]:
  """Divides a row's speed-up and its spread by the ratio of steps."""
  name = f"{SPEED_UP}_over_ratio"
  result: dict[str, Any] = {name: _over(row.get(SPEED_UP), ratio)}
  for end in (LEAST, MOST):
    if is_number(row.get(f"{SPEED_UP}{end}")):
      result[f"{name}{end}"] = _over(row[f"{SPEED_UP}{end}"], ratio)
  return rounded(result)


def _over(value: Any, other: Any) -> float | None:
  if not is_number(value) or not is_number(other) or not other:
    return None
  return value / other


def _plain(value: Any) -> Any:
  """Replaces each number that JSON cannot hold by None, such as NaN."""
  if isinstance(value, dict):
    return {name: _plain(each) for name, each in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(each) for each in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
