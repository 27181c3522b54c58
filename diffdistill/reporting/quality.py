"""The page's table of an evaluation: the distance of each model to the data."""

from diffdistill.evaluation.curves import is_aside
from diffdistill.evaluation.speeds import readable
from diffdistill.evaluation.titles import row_titles
from diffdistill.reporting.formats import breakable, cell, strong
from diffdistill.reporting.gather import Run
from diffdistill.reporting.judged import Judged

# Columns with text instead of numbers, which come last in the table.
WORDS = ("paper", "devices")


def comparison(judged: Judged) -> tuple[list[str], list[list[str]]]:
  """The header and the rows of an evaluation's table."""
  # The first columns are visible on a phone without scrolling.
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


def not_judged(run: Run, judged: Judged) -> list[str]:
  """The finished models that the evaluation does not have."""
  finished = {
    log.name for log in run.rounds if log.finished and log.makes_images
  }
  return sorted(finished - {row["model"] for row in judged.rows})


def rows_of_sheet(judged: Judged) -> list[str]:
  """The titles of the rows of the sheet that compares the models."""
  shown = [row for row in judged.rows if not is_aside(row)]
  return row_titles([(row["model"], row["steps"]) for row in shown])
