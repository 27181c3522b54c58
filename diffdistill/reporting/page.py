"""The command `report`: one page of one run or of several, or its numbers."""

import json
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from diffdistill.reporting.costs import Cost, costs
from diffdistill.reporting.gather import Run, gather
from diffdistill.reporting.numbers import numbers
from diffdistill.reporting.table import csv_table
from diffdistill.system.files import write_atomically


def write_report(
  workdirs: Sequence[epath.Path],
  out: epath.Path,
  say: Callable[[str], None],
) -> None:
  """Writes a page about one run or several runs, or only their numbers.

  Args:
    workdirs: the workdirs of the runs, finished or not.
    out: the file to write: .html for a page, .json for only the numbers, .csv
      for only the rows of the evaluations. Its folder is made if needed.
    say: receives a line for each slow step.

  Raises:
    ValueError: if no workdir is given, a workdir holds no run, `out` has
      another ending, a page is asked for and Jinja2 is not installed, or rows
      are asked for and there is no evaluation.
  """
  if out.suffix not in (".html", ".json", ".csv"):
    raise ValueError(
      f"out is {str(out)!r}; pass a name that ends in .html, .json or .csv"
    )
  if not workdirs:
    raise ValueError("no workdir is given; pass --workdir=A, or A,B for two")
  places = [str(workdir) for workdir in workdirs]
  for place in places:
    if places.count(place) > 1:
      raise ValueError(f"the workdir {place} is given twice; pass it once")
  names = [workdir.name for workdir in workdirs]
  if len(set(names)) < len(names):
    names = places
  if out.suffix == ".csv":
    named = dict(zip(names, workdirs, strict=True))
    write_atomically(out, csv_table(named, say))
    return
  runs = []
  for workdir, name in zip(workdirs, names, strict=True):
    say(f"reading {workdir}")
    runs.append(gather(workdir, name))
  spent, notes = {}, {}
  for run in runs:
    notes[run.name] = list(run.notes)
    spent[run.name] = costs(run, say, notes[run.name])
  if out.suffix == ".json":
    text = json.dumps(numbers(runs, spent, notes), indent=2) + "\n"
  else:
    text = _page(runs, spent, notes)
  write_atomically(out, text)


def _page(
  runs: Sequence[Run],
  spent: Mapping[str, Mapping[str, Cost]],
  notes: Mapping[str, Sequence[str]],
) -> str:
  try:
    # Imported here, because a machine that only trains may not have Jinja2.
    from diffdistill.reporting.rendered import page
  except ModuleNotFoundError as error:
    if error.name not in ("jinja2", "markupsafe"):
      raise
    raise ValueError(
      "a page needs Jinja2, which is not installed; run `pip install jinja2`,"
      " or pass a name that ends in .json for the numbers alone"
    ) from error
  return page(runs, spent, notes)
