"""The part of the page that compares several runs."""

from collections.abc import Mapping, Sequence

from diffdistill.evaluation.curves import Number
from diffdistill.evaluation.trust import TRUSTED, VERDICT
from diffdistill.reporting.formats import breakable, cell, strong
from diffdistill.reporting.gather import Run, flat, written
from diffdistill.reporting.judged import Judged


def differing(runs: Sequence[Run]) -> list[str]:
  """The paths of the config fields that are not the same in all runs."""
  configs = [dict(flat(run.config)) for run in runs]
  paths = sorted({path for config in configs for path in config})
  return [
    path
    for path in paths
    if any(
      path not in config or config[path] != configs[0].get(path)
      for config in configs
    )
  ]


def warnings(runs: Sequence[Run]) -> list[str]:
  """The reasons why distances of the runs cannot be compared."""
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
  other = _settings_that_differ(judged)
  if other:
    said.append(
      "The runs were judged in different ways, so compare only within a run."
      f" These settings differ: {', '.join(other)}."
    )
  elif len(judged) > 1 and _metrics(judged)[0].startswith("FD-"):
    said.append(
      "Each run was judged by its own classifier; distances of different"
      " classifiers cannot be compared."
    )
  return said


def distances(
  runs: Sequence[Run],
) -> tuple[str, list[str], list[list[str]]] | None:
  """A table of models by runs: its caption, its header, and a row per model."""
  judged = _judged(runs)
  if not judged:
    return None
  cells: dict[tuple[str, int], dict[str, Number | None]] = {}
  for name, one in judged.items():
    for row in one.rows:
      key = (row["model"], row["steps"])
      cells.setdefault(key, {})[name] = row.get(one.metric)
  alike = not _settings_that_differ(judged)
  rows = []
  for (model, steps), values in cells.items():
    known = [v for v in values.values() if v is not None]
    line: list[str] = [breakable(model), str(steps)]
    for name in judged:
      value = values.get(name)
      best = alike and value is not None and value == min(known) < max(known)
      line.append(strong(cell(value)) if best else cell(value))
    rows.append(line)
  metrics = _metrics(judged)
  names = list(judged)
  if len(metrics) > 1:
    names = [f"{name}: {one.metric}" for name, one in judged.items()]
  caption = f"{', '.join(metrics)} of every model of every run"
  return caption, ["model", "steps", *names], rows


def differences(runs: Sequence[Run]) -> list[list[str]]:
  """A row for each field that differs.

  If some runs lack a whole section, the section is one row.
  """
  configs = [dict(flat(run.config)) for run in runs]
  rows: dict[str, list[str]] = {}
  for path in differing(runs):
    names = path.split(".")[:-1]
    for depth in range(len(names)):
      section = ".".join(names[: depth + 1])
      counts = [sum(p.startswith(f"{section}.") for p in c) for c in configs]
      if not all(counts):
        cells = [f"{n} fields" if n else "-" for n in counts]
        rows[section] = [breakable(section), *cells]
        break
    else:
      cells = [written(c[path]) if path in c else "-" for c in configs]
      rows[path] = [breakable(path), *cells]
  return list(rows.values())


def _judged(runs: Sequence[Run]) -> dict[str, Judged]:
  return {run.name: run.judged for run in runs if run.judged is not None}


def _metrics(judged: Mapping[str, Judged]) -> list[str]:
  return list(dict.fromkeys(one.metric for one in judged.values()))


def _settings_that_differ(judged: Mapping[str, Judged]) -> list[str]:
  """Evaluation settings that are not the same in all runs."""
  ways = [
    {
      "metric": one.metric,
      **{
        name.replace("_", " "): value
        for name, value in one.facts.items()
        # These facts follow from the other settings.
        if name not in ("devices", TRUSTED, VERDICT)
        and " of two samples of " not in name
      },
    }
    for one in judged.values()
  ]
  names = dict.fromkeys(name for way in ways for name in way)
  return [n for n in names if any(w.get(n) != ways[0].get(n) for w in ways)]
