"""Renders the page of one run or several runs from its Jinja2 template."""

from collections.abc import Mapping, Sequence

import jinja2

from diffdistill.reporting import charts, quality, side_by_side, stages
from diffdistill.reporting.costs import Cost, total
from diffdistill.reporting.formats import breakable, cell, flops, number, size
from diffdistill.reporting.gather import Run, flat, written
from diffdistill.training.report import duration
from diffdistill.version import VERSION

# The browser must load and run nothing, even if a workdir holds harmful text.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(
  runs: Sequence[Run],
  spent: Mapping[str, Mapping[str, Cost]],
  notes: Mapping[str, Sequence[str]],
) -> str:
  """The whole page as HTML that is also well-formed XML.

  Args:
    runs: the runs, in the order of the page.
    spent: the cost of each stage, by the names of run and stage.
    notes: the missing or damaged things of each run, by the name of the run.
  """
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("diffdistill.reporting"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters.update(
    breakable=breakable,
    cell=cell,
    duration=duration,
    flops=flops,
    number=number,
    size=size,
  )
  text = environment.get_template("page.html").render(
    charts=charts,
    quality=quality,
    stages=stages,
    side_by_side=side_by_side,
    flat=flat,
    written=written,
    runs=runs,
    spent=spent,
    totals={run.name: total(spent[run.name]) for run in runs},
    notes=notes,
    policy=POLICY,
    version=VERSION,
  )
  return f"{text.strip()}\n"
