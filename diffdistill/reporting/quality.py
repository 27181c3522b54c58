"""The page's part on quality: how near each model is to the data."""

from diffdistill.evaluation.speeds import readable
from diffdistill.reporting.formats import breakable, cell, number, strong
from diffdistill.reporting.gather import Run
from diffdistill.reporting.judged import Judged

# Columns that come last in the table.
WORDS = ("paper", "devices")


def lead(judged: Judged) -> str:
  """The student of the fewest steps against the teacher's best."""
  best = judged.best()
  if not best:
    return "No student is judged yet."
  (steps, row), *_ = best.items()
  text = (
    f"In {in_steps(steps)}, {row['model']} is at"
    f" {number(row[judged.metric])} {judged.metric}"
  )
  teacher = judged.of_teacher()
  if teacher:
    most, nearest = min(
      teacher.items(), key=lambda item: item[1][judged.metric]
    )
    text += (
      f"; the best of {judged.teacher} is {number(nearest[judged.metric])}, in"
      f" {in_steps(most)}"
    )
  return f"{text}. Lower is better."


def against_teacher(judged: Judged, steps: int) -> str:
  """How the best student of a number of steps compares with its teacher."""
  teacher = judged.of_teacher()
  distance = judged.best()[steps][judged.metric]
  text = ""
  if steps in teacher:
    same = number(teacher[steps][judged.metric])
    text = f"; its teacher has {same} in as many"
  near = [n for n, row in teacher.items() if row[judged.metric] <= distance]
  if near:
    return f"{text}. The teacher is as near in {near[0]}."
  return f"{text}. The teacher is nowhere as near."


def in_steps(steps: int) -> str:
  return "1 step" if steps == 1 else f"{steps} steps"


def comparison(judged: Judged) -> tuple[list[str], list[list[str]]]:
  """The header and the rows of an evaluation's table."""
  # On a phone, the first columns are seen without scrolling.
  first = ["model", "steps", judged.metric]
  texts = [readable(row) for row in judged.rows]
  found = list(dict.fromkeys(name for row in texts for name in row))
  columns = first + [c for c in found if c not in (*first, *WORDS)]
  columns += [c for c in found if c in WORDS]
  best = [id(row) for row in judged.best().values()]
  rows = []
  for row, values in zip(judged.rows, texts, strict=True):
    cells: list[str] = []
    for column in columns:
      text = cell(values.get(column))
      if column == "model":
        text = breakable(text)
      is_best = column == judged.metric and id(row) in best
      cells.append(strong(text) if is_best else text)
    rows.append(cells)
  return [column.replace("_", " ") for column in columns], rows


def facts(judged: Judged) -> list[tuple[str, str]]:
  """The settings of an evaluation."""
  named = {"metric": judged.metric, **judged.facts}
  return [
    (name.replace("_", " "), cell(value)) for name, value in named.items()
  ]


def not_judged(run: Run, judged: Judged) -> list[str]:
  """The finished models that the evaluation does not have."""
  finished = {
    log.name for log in run.rounds if log.finished and log.makes_images
  }
  return sorted(finished - {row["model"] for row in judged.rows})
