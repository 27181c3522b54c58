"""The part of the page on how a run was trained, and what that took."""

from collections.abc import Mapping, Sequence

from diffdistill.evaluation.speeds import shown
from diffdistill.reporting.charts import Series, chart, legend
from diffdistill.reporting.costs import Cost, total
from diffdistill.reporting.gather import RoundLog, Run
from diffdistill.reporting.markup import (
  Html,
  definitions,
  element,
  join,
  table,
)
from diffdistill.reporting.scales import Number, along, flops, number, size
from diffdistill.training.report import duration

UNKNOWN = "not recorded"
# What is drawn of a stage: the ending of the names, and the name of the axis.
DRAWN = (
  ("/loss", "loss"),
  ("/grad_norm", "gradient norm"),
  ("distance", "distance, by which it selects"),
  ("held_out_loss", "held-out loss, by which it selects"),
)


def cost_card(costs: Mapping[str, Cost]) -> Html:
  """What the whole run took."""
  return element(
    "div",
    definitions(_facts(total(costs), "images, pairs"), "facts"),
    class_="card",
  )


def cost_notes() -> Html:
  """How the costs are known."""
  return element(
    "p",
    "Hours are those of the records: compiling, saving and scoring are in them,"
    " work that was lost and done again is not. Operations are the products and"
    " convolutions of each update's program, times the updates done, as if"
    " every teacher were guided where one is; a selection's scoring and"
    " evaluation are not in them. The share of peak is theirs, of what the chip"
    " is published to do in that time, but for compiling and scoring; the time"
    " not of updates is what is left of it beside them, at the speed that"
    " diffdistill benchmark found for an update by itself. Peak memory is the"
    " most that the process had held until then, earlier stages included."
    " Weights and optimizer are counted from the config, for one device that"
    " holds all of them.",
    class_="muted",
  )


def stage_card(
  run: Run, stage: str, logs: Sequence[RoundLog], cost: Cost, heading: str
) -> Html:
  """One stage: its state, its cost, its curves and its rounds."""
  parts = [
    element(heading, stage),
    element("p", _about(run, stage, logs), class_="muted"),
  ]
  if logs[0].planned != 0:
    # Where it is 0, its weights were given and cost this run nothing.
    counts = "pairs" if logs[0].unit == "pairs" else "images"
    parts.append(definitions(_facts(cost, counts), "facts"))
  parts += _charts(stage, logs)
  if len(logs) > 1:
    parts.append(_rounds(stage, logs))
  return element("article", *parts, class_="card")


def _facts(cost: Cost, counts: str) -> list[tuple[str, str]]:
  hours = UNKNOWN
  if cost.device_seconds is not None:
    hours = number(cost.device_seconds / 3600)
  elif cost.seconds is not None:
    hours = "devices not recorded"
  where = f" on {', '.join(cost.devices)}" if cost.devices else ""
  facts = [
    ("device-hours", hours),
    (
      "time",
      UNKNOWN if cost.seconds is None else duration(cost.seconds) + where,
    ),
    (counts, _known(cost.images, number)),
    (
      "operations",
      _known(cost.flops, lambda v: f"≈ {flops(v)}", "not counted"),
    ),
    ("weights and optimizer", _known(cost.trees_bytes, size, "not counted")),
  ]
  if cost.updates is not None:
    facts.append(("updates", number(cost.updates)))
  if cost.speed is not None:
    text = number(cost.speed)
    if cost.middle is not None:
      text = shown(cost.speed, *cost.middle)
    facts.append(("images/s, median (middle half)", text))
  for name, share in (
    ("share of peak FLOP/s", cost.share_of_peak),
    ("time not of updates", cost.lost),
  ):
    if share is not None:
      facts.append((name, f"{100 * share:.1f} %"))
  if cost.passes:
    # A classifier has none.
    facts.append(("passes", number(cost.passes)))
  for holder, held in (
    ("device", cost.device_bytes),
    ("host", cost.host_bytes),
  ):
    if held is not None:
      facts.append((f"peak memory, {holder}", size(held)))
  if cost.device_bytes is None and cost.host_bytes is None:
    facts.append(("peak memory", UNKNOWN))
  return facts


def _known(value, write, otherwise: str = UNKNOWN) -> str:
  return otherwise if value is None else write(value)


def _about(run: Run, stage: str, logs: Sequence[RoundLog]) -> str:
  """What it is, where it starts from, how far it is."""
  stages = run.config.get("stages")
  fields = stages.get(stage) if isinstance(stages, dict) else None
  fields = fields if isinstance(fields, dict) else {}
  objective = fields.get("objective")
  words = []
  if isinstance(objective, dict) and "kind" in objective:
    words.append(str(objective["kind"]).replace("_", " "))
  elif fields.get("kind") == "pairs":
    words.append("pairs of noise and the teacher's image")
  if not fields:
    words.append("recorded, but not in the config any more")
  frozen = fields.get("frozen")
  if isinstance(frozen, dict) and frozen:
    words.append(f"from {', '.join(map(str, dict.fromkeys(frozen.values())))}")
  states = [log.state for log in logs]
  if fields.get("source"):
    words.append(f"not trained here, but {fields['source']}")
  elif len(logs) == 1:
    words.append(f"{states[0]}, {_done(logs[0])} {logs[0].unit}")
  elif set(states) == {"finished"}:
    words.append(f"all {len(logs)} rounds finished")
  else:
    words.append(f"{states.count('finished')} of {len(logs)} rounds finished")
  return "; ".join(words)


def _done(log: RoundLog) -> str:
  """How much of a round is done, as far as recorded."""
  if log.planned is None or log.planned == log.done:
    return f"{log.done:,}"
  return f"{log.done:,} of {log.planned:,}"


def _rounds(stage: str, logs: Sequence[RoundLog]) -> Html:
  rows = []
  for log in logs:
    losses = [
      f"{number(points[-1][1])}" for points in log.lines("/loss").values()
    ]
    skipped = sum(
      max(y for _, y in points) for points in log.lines("/skipped").values()
    )
    state = log.state
    if skipped:
      state += f", {number(int(skipped))} skipped"
    rows.append([log.name, state, _done(log), " / ".join(losses) or "-"])
  trees = list(dict.fromkeys(n for log in logs for n in log.lines("/loss")))
  last = f"last loss ({' / '.join(trees)})" if len(trees) > 1 else "last loss"
  return table(
    ["round", "state", logs[0].unit, last],
    rows,
    caption=f"The rounds of {stage}",
    words=2,
  )


def _charts(stage: str, logs: Sequence[RoundLog]) -> list[Html]:
  """Small charts, one above the other, of all rounds one after the other."""
  starts, length = [], 0.0
  for log in logs:
    starts.append(length)
    length += log.done
  if not length or logs[0].unit == "pairs":
    return []
  marks = []
  if len(logs) > 1:
    marks = [
      (start, start + log.done, log.name.split("/")[-1])
      for start, log in zip(starts, logs, strict=True)
      if log.done
    ]
  drawn = {}
  for ending, title in DRAWN:
    series = _series(ending, logs, starts)
    if series:
      drawn[title] = series
  charts, names = [], []
  for title, series in drawn.items():
    if len(series) > 1:
      names = series
    last = title == list(drawn)[-1]
    charts.append(
      chart(
        series,
        title=title,
        alt=f"{title} of {stage} against updates",
        xlabel="updates" if last else "",
        height=154 + 16 * last,
        x=along(length),
        marks=marks,
      )
    )
  if not charts:
    return []
  more = [legend(names)] if names else []
  return [element("figure", join([*charts, *more]))]


def _series(
  ending: str, logs: Sequence[RoundLog], starts: Sequence[Number]
) -> list[Series]:
  found: dict[str, list[tuple[tuple[Number, Number], ...]]] = {}
  for start, log in zip(starts, logs, strict=True):
    for name, points in log.lines(ending).items():
      if "/" in ending or not name:
        moved = tuple((start + x, y) for x, y in points)
        found.setdefault(name or ending, []).append(moved)
  return [
    Series(name=name, lines=tuple(lines), colour=i, dash=i)
    for i, (name, lines) in enumerate(found.items())
  ]
