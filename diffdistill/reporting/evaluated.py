"""The part of the page on who is near the data, in how many steps."""

from typing import Any

from diffdistill.evaluation.speeds import readable
from diffdistill.reporting.charts import Series, chart, figure
from diffdistill.reporting.gather import Run, is_number
from diffdistill.reporting.judged import Judged
from diffdistill.reporting.markup import (
  Html,
  broken,
  definitions,
  element,
  join,
  table,
)
from diffdistill.reporting.scales import Number, number, over

# Columns that come last.
WORDS = ("paper", "devices")


def headline(run: Run) -> Html:
  """The best student of each number of steps, against the teacher."""
  judged = run.judged
  if judged is None:
    return element(
      "p",
      "Not judged yet: ",
      element("code", f"diffdistill evaluate --workdir={run.place}"),
      " compares its models with the data and the teacher.",
      class_="lead",
    )
  best, teacher = judged.best(), judged.of_teacher()
  if not best:
    nothing = element("p", "No student is judged yet.", class_="lead")
    return join([warning(judged), nothing])
  cards = []
  for steps, row in best.items():
    value = row[judged.metric]
    parts: list[str] = [element("b", number(value)), broken(row["model"])]
    if steps in teacher:
      parts.append(
        f"; its teacher has {number(teacher[steps][judged.metric])} in as many"
      )
    parts.append(_as_near(judged, value))
    cards.append((_in_steps(steps), join(parts)))
  says = element("p", _lead(judged), class_="lead")
  return join([warning(judged), says, definitions(cards, "heads")])


def warning(judged: Judged) -> Html:
  """That the distances mean nothing, where the judge is not trusted."""
  if judged.distrust is None:
    return Html("")
  text = (
    f"{judged.metric} does not measure these models: its judge is"
    f" {judged.distrust}."
  )
  return element("p", element("strong", text), role="alert")


def evaluated(run: Run, heading: str) -> Html:
  """The curves, the table and what they were measured by."""
  judged = run.judged
  if judged is None:
    return Html("")
  missing = sorted(
    {log.name for log in run.rounds if log.finished and log.makes_images}
    - {row["model"] for row in judged.rows}
  )
  parts = [
    element(heading, "Quality for steps"),
    curves(judged),
    comparison(judged),
    element(
      "p",
      f"{judged.metric}: lower is better. The best student of each number of"
      " steps is set off. teacher_gap is the RMS difference from the teacher's"
      " images on the same noise, over their standard deviation; images a"
      " second are of sampling, the median over whole batches of one size after"
      " the first, and from the slowest to the fastest of them; speed-up is"
      " against the teacher's at its most steps, from the worst to the best"
      " case of both; training passes and seconds are those of the"
      " student and of the students it came through, not of the teacher.",
      class_="muted",
    ),
    definitions([("metric", judged.metric), *_facts(judged)], "facts"),
  ]
  if missing:
    parts.append(
      element("p", f"Finished, but not judged here: {', '.join(missing)}.")
    )
  return join(parts)


def curves(judged: Judged) -> Html:
  """The distance, and the gap from the teacher, against steps."""
  charts = []
  for column, title, log in (
    (judged.metric, f"{judged.metric} (lower is better)", True),
    ("teacher_gap", "gap from the teacher (lower is better)", None),
  ):
    found = judged.curves(column)
    if log is None:
      # The teacher's is to itself.
      found.pop(judged.teacher.split("/")[0], None)
    series = families(found, judged.teacher.split("/")[0])
    if not series:
      continue
    steps = sorted({x for points in found.values() for x, _ in points})
    noise = judged.noise if log else None
    drawn = chart(
      series,
      title=title,
      alt=f"{title} against sampler steps: {_said(found)}.",
      xlabel="sampler steps",
      x=over(steps),
      log=log,
      level=(noise, "two samples of real images") if noise else None,
    )
    charts.append(figure(drawn, series, ""))
  return element("div", *charts, class_="pair") if charts else Html("")


def families(
  curves: dict[str, list[tuple[Number, Number]]], teacher: str
) -> list[Series]:
  """One line a family; the teacher's is dashed, in the colour of text."""
  students = [name for name in curves if name != teacher]
  return [
    Series(
      name=name,
      lines=(tuple(points),),
      colour=-1 if name == teacher else students.index(name),
      dash=1 if name == teacher else 0,
      shape=0 if name == teacher else students.index(name),
    )
    for name, points in curves.items()
  ]


def comparison(judged: Judged) -> Html:
  """The rows of an evaluation as they were written."""
  # What is looked for first comes first on a phone.
  first = ["model", "steps", judged.metric]
  texts = [readable(row) for row in judged.rows]
  found = list(dict.fromkeys(name for row in texts for name in row))
  columns = first + [c for c in found if c not in (*first, *WORDS)]
  columns += [c for c in found if c in WORDS]
  best = [id(row) for row in judged.best().values()]
  rows = []
  for row, text_of in zip(judged.rows, texts, strict=True):
    cells: list[str] = []
    for column in columns:
      value = text_of.get(column)
      text = broken(value) if isinstance(value, str) else cell(value)
      if column == judged.metric and id(row) in best:
        text = element("strong", text)
      cells.append(text)
    rows.append(cells)
  caption = "Every model at every number of steps"
  if judged.distrust is not None:
    caption += "; the judge is NOT TRUSTED"
  return table(
    [column.replace("_", " ") for column in columns], rows, caption=caption
  )


def cell(value: Any) -> str:
  """A value of a table; a dash where there is none."""
  if value is None:
    return "-"
  return number(value) if is_number(value) else str(value)


def _in_steps(steps: int) -> str:
  return "1 step" if steps == 1 else f"{steps} steps"


def _as_near(judged: Judged, value: Number) -> str:
  """How many steps the teacher takes to be as near to the data."""
  as_near = [
    steps
    for steps, row in judged.of_teacher().items()
    if row[judged.metric] <= value
  ]
  if not as_near:
    return ". The teacher is nowhere as near."
  return f". The teacher is as near in {as_near[0]}."


def _lead(judged: Judged) -> str:
  """The fewest steps, against the teacher's best."""
  (steps, row), *_ = judged.best().items()
  text = (
    f"In {_in_steps(steps)}, {row['model']} is at"
    f" {number(row[judged.metric])} {judged.metric}"
  )
  teacher = judged.of_teacher()
  if teacher:
    most, nearest = min(
      teacher.items(), key=lambda item: item[1][judged.metric]
    )
    text += (
      f"; the best of {judged.teacher} is {number(nearest[judged.metric])}, in"
      f" {_in_steps(most)}"
    )
  return f"{text}. Lower is better."


def _facts(judged: Judged) -> list[tuple[str, str]]:
  return [
    (name.replace("_", " "), cell(value))
    for name, value in judged.facts.items()
  ]


def _said(curves: dict[str, list[tuple[Number, Number]]]) -> str:
  """The numbers of a chart, in words."""
  return "; ".join(
    f"{name} " + ", ".join(f"{number(y)} in {x:g}" for x, y in points)
    for name, points in curves.items()
  )
