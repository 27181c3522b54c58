"""The part of the page on several runs at once."""

from collections.abc import Mapping, Sequence

from diffdistill.evaluation.trust import TRUSTED, VERDICT
from diffdistill.reporting.charts import Series, chart, figure
from diffdistill.reporting.costs import Cost, total
from diffdistill.reporting.gather import Run, flat, written
from diffdistill.reporting.judged import Judged
from diffdistill.reporting.markup import Html, broken, element, join, table
from diffdistill.reporting.scales import Number, flops, number, over, size
from diffdistill.training.report import duration


def side_by_side(
  runs: Sequence[Run], costs: Mapping[str, Mapping[str, Cost]]
) -> Html:
  """One table, one chart, what it took and what differs in the configs."""
  return join(
    [
      element("h2", "Side by side", id="side-by-side"),
      _warnings(runs),
      _curves(runs),
      _distances(runs),
      element("h3", "What it took"),
      _costs(runs, costs),
      element("h3", "What differs in the configs"),
      _differences(runs),
    ]
  )


def differing(runs: Sequence[Run]) -> list[str]:
  """The fields, by path, that are not the same in all runs."""
  configs = [dict(flat(run.config)) for run in runs]
  paths = list(dict.fromkeys(path for config in configs for path in config))
  missing = object()
  return [
    path
    for path in sorted(paths)
    if any(
      config.get(path, missing) != configs[0].get(path, missing)
      for config in configs
    )
  ]


def _judged(runs: Sequence[Run]) -> dict[str, Judged]:
  return {run.name: run.judged for run in runs if run.judged is not None}


def _warnings(runs: Sequence[Run]) -> Html:
  """What keeps the columns from being compared."""
  judged = _judged(runs)
  said = []
  absent = [run.name for run in runs if run.name not in judged]
  if absent:
    said.append(f"Not judged yet: {', '.join(absent)}.")
  said += [
    f"{name}: {one.metric} does not measure its models: its judge is"
    f" {one.distrust}."
    for name, one in judged.items()
    if one.distrust is not None
  ]
  other = _judged_by(judged)
  if other:
    said.append(
      f"They were not judged alike: {', '.join(other)} differ. Compare within a"
      " run."
    )
  elif len(judged) > 1 and _metrics(judged)[0].startswith("FD-"):
    said.append(
      "Each run was judged by its own classifier; distances compare only where"
      " those are the same."
    )
  if not said:
    return Html("")
  return element("ul", *(element("li", s) for s in said), class_="notes")


def _metrics(judged: Mapping[str, Judged]) -> list[str]:
  return list(dict.fromkeys(one.metric for one in judged.values()))


def _judged_by(judged: Mapping[str, Judged]) -> list[str]:
  """What of the ways in which they were judged is not the same."""
  ways = [
    {
      "metric": one.metric,
      **{
        name.replace("_", " "): value
        for name, value in one.facts.items()
        # The distance of the data from itself, and the decision on the judge,
        # follow from the others.
        if name not in ("devices", TRUSTED, VERDICT)
        and " of two samples of " not in name
      },
    }
    for one in judged.values()
  ]
  names = dict.fromkeys(name for way in ways for name in way)
  return [n for n in names if any(w.get(n) != ways[0].get(n) for w in ways)]


def _distances(runs: Sequence[Run]) -> Html:
  """Models down, runs across; the best of a row is set off."""
  judged = _judged(runs)
  if not judged:
    return Html("")
  cells: dict[tuple[str, int], dict[str, Number | None]] = {}
  for name, one in judged.items():
    for row in one.rows:
      key = (row["model"], row["steps"])
      cells.setdefault(key, {})[name] = row.get(one.metric)
  alike = not _judged_by(judged)
  rows = []
  for (model, steps), values in cells.items():
    known = [v for v in values.values() if v is not None]
    line: list[str] = [broken(model), str(steps)]
    for name in judged:
      value = values.get(name)
      text: str = "-" if value is None else number(value)
      if alike and value is not None and value == min(known) < max(known):
        text = element("strong", text)
      line.append(text)
    rows.append(line)
  metrics = _metrics(judged)
  names = list(judged)
  if len(metrics) > 1:
    names = [f"{name}: {one.metric}" for name, one in judged.items()]
  return table(
    ["model", "steps", *names],
    rows,
    caption=f"{', '.join(metrics)} of every model of every run",
  )


def _curves(runs: Sequence[Run]) -> Html:
  """All runs in one chart for each metric that they were judged by."""
  judged = _judged(runs)
  charts = []
  for metric in _metrics(judged):
    lines = {
      (name, family): points
      for name, one in judged.items()
      if one.metric == metric
      for family, points in one.curves(metric).items()
    }
    if not lines:
      continue
    series = _series(lines)
    steps = sorted({x for points in lines.values() for x, _ in points})
    drawn = chart(
      series,
      title=f"{metric} (lower is better)",
      alt=f"{metric} of every run against sampler steps; see the table",
      xlabel="sampler steps",
      x=over(steps),
      log=True,
    )
    charts.append(figure(drawn, series, ""))
  return element("div", *charts, class_="pair") if charts else Html("")


def _series(
  lines: Mapping[tuple[str, str], list[tuple[Number, Number]]],
) -> list[Series]:
  """Colours for the runs and dashes for the families, or the other way."""
  runs = list(dict.fromkeys(run for run, _ in lines))
  kinds = list(dict.fromkeys(family for _, family in lines))
  few = len(kinds) <= max(len(runs), 4)
  result = []
  for (run, family), points in lines.items():
    i, j = runs.index(run), kinds.index(family)
    colour, dash = (i, j) if few else (j, i)
    result.append(
      Series(
        name=f"{run}: {family}",
        lines=(tuple(points),),
        colour=colour,
        dash=dash,
        shape=j,
      )
    )
  return result


def _costs(
  runs: Sequence[Run], costs: Mapping[str, Mapping[str, Cost]]
) -> Html:
  rows = []
  for run in runs:
    cost = total(costs[run.name])
    hours = cost.device_seconds
    rows.append(
      [
        run.name,
        "-" if hours is None else number(hours / 3600),
        "-" if cost.seconds is None else duration(cost.seconds),
        "-" if cost.images is None else number(cost.images),
        "-" if cost.passes is None else number(cost.passes),
        "-" if cost.flops is None else flops(cost.flops),
        "-" if cost.device_bytes is None else size(cost.device_bytes),
      ]
    )
  return table(
    [
      "run",
      "device-hours",
      "time",
      "images, pairs",
      "passes",
      "operations",
      "peak memory of a device",
    ],
    rows,
    caption="What each run took",
  )


def _differences(runs: Sequence[Run]) -> Html:
  """The fields that differ; a section that only some have is one row."""
  paths = differing(runs)
  if not paths:
    return element("p", "Nothing: the configs are the same.")
  configs = [dict(flat(run.config)) for run in runs]
  rows: dict[str, list[str]] = {}
  for path in paths:
    inside = _sections(path)
    counts = [
      [sum(p.startswith(s) for p in c) for c in configs] for s in inside
    ]
    for section, count in zip(inside, counts, strict=True):
      if not all(count):
        cells = [f"{n} fields" if n else "-" for n in count]
        rows[section] = [broken(section.rstrip(".")), *cells]
        break
    else:
      cells = [written(c[path]) if path in c else "-" for c in configs]
      rows[path] = [broken(path), *cells]
  made = table(
    ["field", *(run.name for run in runs)],
    list(rows.values()),
    caption="The fields that differ",
    words=len(runs) + 1,
  )
  return element("div", made, class_="values")


def _sections(path: str) -> list[str]:
  """The sections that a field is in, from the outermost: "stages.", ..."""
  names = path.split(".")[:-1]
  return [".".join(names[: i + 1]) + "." for i in range(len(names))]
