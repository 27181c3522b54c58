"""Every evaluation of one run or several runs, as one table of a CSV file."""

import csv
import io
from collections.abc import Callable, Mapping

from etils import epath

from diffdistill.judging.summaries import read_all
from diffdistill.judging.tidy_rows import tidy_rows
from diffdistill.run.workdir import stored_config


def csv_table(
  workdirs: Mapping[str, epath.Path], say: Callable[[str], None]
) -> str:
  """A CSV text with a header and one line per row of each evaluation.

  An unknown value is empty.

  Args:
    workdirs: the workdirs of the runs, by the name of the run.
    say: receives a line for each run without an evaluation, and for each
      damaged file.

  Raises:
    ValueError: if a workdir holds no run, or no run has an evaluation.
  """
  rows = []
  for name, workdir in workdirs.items():
    config = stored_config(workdir)
    evaluations = read_all(workdir, say)
    if not evaluations:
      say(f"{workdir} has no evaluation yet, so the table has no row of it")
    for evaluation in evaluations:
      rows += tidy_rows(evaluation.summary, name, config)
  if not rows:
    first = next(iter(workdirs.values()))
    raise ValueError(
      "no run has an evaluation yet, so there are no rows; run diffdistill"
      f" evaluate --workdir={first} first"
    )
  text = io.StringIO()
  columns = dict.fromkeys(column for row in rows for column in row)
  writer = csv.DictWriter(text, columns, lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue()
