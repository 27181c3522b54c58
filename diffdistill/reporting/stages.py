"""The part of the page about training: the state and cost of each stage."""

from collections.abc import Callable, Sequence
from typing import Any

from diffdistill.evaluation.speeds import shown
from diffdistill.reporting.costs import Cost
from diffdistill.reporting.formats import cell, flops, number, size
from diffdistill.reporting.gather import RoundLog, Run
from diffdistill.training.report import duration

UNKNOWN, NOT_COUNTED = "not recorded", "not counted"


def about_run(run: Run) -> str:
  """The recipe, the data, the state and the time of the last record."""
  words = []
  stages = run.config.get("run")
  if isinstance(stages, list):
    words.append(" → ".join(map(str, stages)))
  data = run.config.get("data")
  source = data.get("source") if isinstance(data, dict) else None
  if isinstance(source, dict) and "kind" in source:
    words.append(f"on {source['kind']}")
  finished = sum(log.finished for log in run.rounds)
  begun = any(log.state != "not begun" for log in run.rounds)
  words.append(
    f"{finished} of {len(run.rounds)} rounds finished" if begun else "not begun"
  )
  if run.written is not None:
    words.append(f"last written {run.written:%-d %B %Y, %H:%M} UTC")
  return " · ".join(words)


def about_stage(run: Run, stage: str, logs: Sequence[RoundLog]) -> str:
  """The objective, the source of the weights and the state of a stage."""
  stages = run.config.get("stages")
  fields = stages.get(stage) if isinstance(stages, dict) else None
  fields = fields if isinstance(fields, dict) else {}
  objective, words = fields.get("objective"), []
  if isinstance(objective, dict) and "kind" in objective:
    words.append(str(objective["kind"]).replace("_", " "))
  elif fields.get("kind") == "pairs":
    words.append("pairs of noise and the teacher's image")
  if not fields:
    words.append("recorded, but no longer in the config")
  frozen = fields.get("frozen")
  if isinstance(frozen, dict) and frozen:
    words.append(f"from {', '.join(map(str, dict.fromkeys(frozen.values())))}")
  finished = sum(log.finished for log in logs)
  if fields.get("source"):
    words.append(f"not trained here, but {fields['source']}")
  elif len(logs) == 1:
    words.append(f"{logs[0].state}, {_done(logs[0])} {logs[0].unit}")
  elif finished == len(logs):
    words.append(f"all {len(logs)} rounds finished")
  else:
    words.append(f"{finished} of {len(logs)} rounds finished")
  return "; ".join(words)


def facts(cost: Cost, counts: str) -> list[tuple[str, str]]:
  """The cost of a stage or a run: the name and the text of each number.

  Args:
    cost: the cost of the stage or the run.
    counts: the name of the things that `cost.images` counts.
  """
  hours = UNKNOWN
  if cost.device_seconds is not None:
    hours = number(cost.device_seconds / 3600)
  elif cost.seconds is not None:
    hours = "devices not recorded"
  where = f" on {', '.join(cost.devices)}" if cost.devices else ""
  speed = cost.images_per_second
  if speed is not None and cost.images_per_second_middle is not None:
    speed = shown(speed, *cost.images_per_second_middle)
  memory = [
    (f"peak memory, {holder}", size(held))
    for holder, held in (
      ("device", cost.peak_device_bytes),
      ("host", cost.peak_host_bytes),
    )
    if held is not None
  ]
  known = [
    ("updates", cell(cost.updates)),
    ("images/s, median (middle half)", cell(speed)),
    ("share of peak FLOP/s", _share(cost.share_of_peak)),
    ("time not of updates", _share(cost.lost)),
    ("first update after each start", _each(cost.first_updates)),
    # A classifier has no passes through the denoiser.
    ("passes", cell(cost.passes or None)),
  ]
  return [
    ("device-hours", hours),
    ("time", _known(cost.seconds, lambda v: duration(v) + where)),
    (counts, _known(cost.images, number)),
    ("operations", _known(cost.flops, lambda v: f"≈ {flops(v)}", NOT_COUNTED)),
    ("weights and optimizer", _known(cost.trees_bytes, size, NOT_COUNTED)),
    *((name, text) for name, text in known if text != "-"),
    *(memory or [("peak memory", UNKNOWN)]),
  ]


def rounds(logs: Sequence[RoundLog]) -> tuple[list[str], list[list[str]]]:
  """The header and the rows of a stage's table of rounds."""
  rows = []
  for log in logs:
    losses = [number(line[-1][1]) for line in log.lines("/loss").values()]
    skipped = sum(
      max(y for _, y in line) for line in log.lines("/skipped").values()
    )
    state = log.state
    if skipped:
      state += f", {number(int(skipped))} skipped"
    rows.append([log.name, state, _done(log), " / ".join(losses) or "-"])
  trees = list(dict.fromkeys(n for log in logs for n in log.lines("/loss")))
  last = f"last loss ({' / '.join(trees)})" if len(trees) > 1 else "last loss"
  return ["round", "state", logs[0].unit, last], rows


def _each(seconds: Sequence[float]) -> str:
  """The seconds of each start, in order; only the last ten of many."""
  shown = [duration(s) for s in seconds[-10:]]
  return ", ".join(["...", *shown] if len(seconds) > 10 else shown) or "-"


def _share(value: Any) -> str:
  return "-" if value is None else f"{100 * value:.1f} %"


def _known(
  value: Any, write: Callable[[Any], str], otherwise: str = UNKNOWN
) -> str:
  return otherwise if value is None else write(value)


def _done(log: RoundLog) -> str:
  """The recorded updates or pairs, and the planned number of them."""
  if log.planned is None or log.planned == log.done:
    return f"{log.done:,}"
  return f"{log.done:,} of {log.planned:,}"
