"""The charts of a page, as SVG elements, and of a notebook, as pictures."""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from etils import epath
from markupsafe import Markup

from diffdistill.evaluation.curves import Curve, Number, Point, curves
from diffdistill.evaluation.shown import Picture
from diffdistill.reporting.formats import number
from diffdistill.reporting.gather import RoundLog, Run, gather
from diffdistill.reporting.judged import largest_evaluation
from diffdistill.reporting.repeated_runs import merged, repeats

if TYPE_CHECKING:
  from matplotlib.figure import Figure

# The charts of a stage's records: how the names of the recorded values end, and
# the title of the chart.
DRAWN = (
  ("/loss", "loss"),
  ("/grad_norm", "gradient norm"),
  ("distance", "distance, by which it selects"),
  ("held_out_loss", "held-out loss, by which it selects"),
)


@functools.cache
def can_draw() -> bool:
  """Whether matplotlib is installed."""
  try:
    from diffdistill.evaluation import drawing
  except ModuleNotFoundError:
    return False
  return bool(drawing.COLOURS)


def quality(run: Run) -> list[Markup]:
  """Charts of the distance, the teacher gap and the speed, by sampler steps."""
  judged = run.judged
  if judged is None or not can_draw():
    return []
  from diffdistill.evaluation.drawing import distances, over_steps

  charts, teacher = [], judged.teacher.split("/")[0]
  for column, title, log in (
    (judged.metric, f"{judged.metric} (lower is better)", True),
    ("teacher_gap", "gap from the teacher (lower is better)", None),
    ("images_per_second", "images a second (higher is better)", True),
  ):
    points = judged.points(column)
    if column == "teacher_gap":
      points.pop(teacher, None)
    if not points:
      continue
    if column == judged.metric:
      figure = distances(judged.summary, judged.spreads)
    else:
      figure = over_steps(curves(points, teacher), title, log=log)
    name = f"{run.name}: {title} against sampler steps: {_said(points)}"
    charts.append(_svg(figure, name))
  return charts


def distance_curve(workdir: epath.Path) -> Picture:
  """A chart of the distances of a run's largest evaluation against steps.

  Raises:
    ValueError: if there is no evaluation, or a damaged one.
    ImportError: if matplotlib is not installed.
  """
  from diffdistill.evaluation.drawing import distances, picture

  judged = largest_evaluation(workdir)
  return picture(distances(judged.summary, judged.spreads))


def stage_curves(workdir: epath.Path, stage: str) -> Picture:
  """A chart of a stage's records against updates, for a notebook.

  Raises:
    ValueError: if the stage has no records of updates.
    ImportError: if matplotlib is not installed.
  """
  from diffdistill.evaluation.drawing import picture

  stages = gather(workdir, workdir.name).stages
  found = _stage_figure(stages[stage]) if stage in stages else None
  if found is None:
    raise ValueError(
      f"stage is {stage!r}, which has no records of updates; pass one of"
      f" {', '.join(stages)}"
    )
  return picture(found[0])


def joint(runs: Sequence[Run]) -> list[Markup]:
  """A chart for each metric, with all runs that were judged by it.

  Runs that differ only in a seed are one curve, with their spread.
  """
  judged = {run.name: run.judged for run in runs if run.judged is not None}
  if not can_draw():
    return []
  from diffdistill.evaluation.drawing import over_steps

  charts = []
  for metric in dict.fromkeys(one.metric for one in judged.values()):
    lines = {
      (name, family): points
      for name, one in judged.items()
      if one.metric == metric
      for family, points in one.points(metric).items()
    }
    if lines:
      shown = _of_runs(merged(lines, repeated(runs)))
      figure = over_steps(shown, f"{metric} (lower is better)")
      name = f"{metric} of every run against sampler steps; see the table"
      charts.append(_svg(figure, name))
  return charts


def repeated(runs: Sequence[Run]) -> dict[str, list[str]]:
  """The names of the runs of each curve of a joint chart, by its name."""
  return repeats({run.name: run.config for run in runs})


def stage(run: Run, logs: Sequence[RoundLog]) -> Markup | None:
  """A chart of a stage's records against updates, as an SVG element."""
  found = _stage_figure(logs) if can_draw() else None
  if found is None:
    return None
  figure, titles = found
  name = f"{run.name}: {', '.join(titles)} of {logs[0].stage} against updates"
  return _svg(figure, name)


def _stage_figure(
  logs: Sequence[RoundLog],
) -> "tuple[Figure, list[str]] | None":
  """A chart of a stage's records against updates, round after round.

  Returns:
    (The figure, the titles of its charts); None if nothing is recorded.
  """
  length = sum(log.done for log in logs)
  if not length or logs[0].unit == "pairs":
    return None
  from diffdistill.evaluation.drawing import over_updates

  rounds, start = [], 0
  for log in logs:
    rounds.append((start, start + log.done, log.name.split("/")[-1]))
    start += log.done
  drawn = {
    title: found
    for ending, title in DRAWN
    if (found := _recorded(ending, logs, [first for first, *_ in rounds]))
  }
  if not drawn:
    return None
  marks = (
    [mark for mark in rounds if mark[0] < mark[1]] if len(logs) > 1 else []
  )
  return over_updates(drawn, length, marks), list(drawn)


def _svg(figure, name: str) -> Markup:
  from diffdistill.evaluation.drawing import as_svg

  # as_svg escapes every text.
  return Markup(as_svg(figure, name))


def _of_runs(
  lines: Mapping[tuple[str, str], tuple[Point, ...]],
) -> list[Curve]:
  """Gives a run a colour and a family of models a dash, or the reverse."""
  runs = list(dict.fromkeys(run for run, _ in lines))
  kinds = list(dict.fromkeys(family for _, family in lines))
  few = len(kinds) <= max(len(runs), 4)
  result = []
  for (run, family), points in lines.items():
    i, j = runs.index(run), kinds.index(family)
    colour, dash = (i, j) if few else (j, i)
    curve = Curve(
      name=f"{run}: {family}",
      lines=(points,),
      colour=colour,
      dash=dash,
      # Each curve has its own marker, as long as there are enough.
      marker=len(result),
    )
    result.append(curve)
  return result


def _recorded(
  ending: str, logs: Sequence[RoundLog], starts: Sequence[Number]
) -> list[Curve]:
  """Makes a curve of each recorded name with this ending, as student/loss."""
  found: dict[str, list[tuple[Point, ...]]] = {}
  for start, log in zip(starts, logs, strict=True):
    for name, line in log.lines(ending).items():
      if "/" in ending or not name:
        points = tuple(Point(start + x, y, y, y) for x, y in line)
        found.setdefault(name or ending, []).append(points)
  return [
    Curve(name=name, lines=tuple(lines), colour=i, marker=i, dash=i)
    for i, (name, lines) in enumerate(found.items())
  ]


def _said(points: Mapping[str, Sequence[Point]]) -> str:
  """States the numbers of a chart in words, for readers who cannot see it."""
  return "; ".join(
    f"{name} " + ", ".join(f"{number(p.y)} in {p.x:g}" for p in line)
    for name, line in points.items()
  )
