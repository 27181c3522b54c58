"""One page of one run, or of several, that needs nothing but itself."""

import json
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from diffdistill import __version__
from diffdistill.reporting.costs import Cost, costs
from diffdistill.reporting.evaluated import evaluated, headline
from diffdistill.reporting.gather import Run, flat, gather, written
from diffdistill.reporting.markup import Html, broken, element, join, table
from diffdistill.reporting.numbers import numbers
from diffdistill.reporting.pictures import sheets
from diffdistill.reporting.side_by_side import differing, side_by_side
from diffdistill.reporting.stages import cost_card, cost_notes, stage_card
from diffdistill.reporting.style import STYLE
from diffdistill.system.files import write_atomically

# Nothing is to be loaded or run, whatever a workdir holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(
  workdirs: Sequence[epath.Path],
  out: epath.Path,
  say: Callable[[str], None],
) -> None:
  """Writes a page of one workdir, or of several side by side; or its numbers.

  Args:
    workdirs: of the runs, finished or not.
    out: where to: a page as .html, numbers as .json; its folder is made.
    say: told what takes a while.

  Raises:
    ValueError: for no workdir, one that holds no run, or another ending.
  """
  if out.suffix not in (".html", ".json"):
    raise ValueError(
      f"out is {str(out)!r}; pass a name that ends in .html or .json"
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
    text = document(runs, spent, notes)
  write_atomically(out, text)


def document(
  runs: Sequence[Run],
  spent: Mapping[str, Mapping[str, Cost]],
  notes: Mapping[str, Sequence[str]],
) -> str:
  """The whole page."""
  title = ", ".join(run.name for run in runs)
  body = [element("h1", title)]
  if len(runs) == 1:
    body += _run(runs[0], spent[title], notes[title], (), "h2")
  else:
    links = [("side-by-side", "side by side")]
    links += [(f"run-{i}", run.name) for i, run in enumerate(runs)]
    items = [
      element("li", element("a", text, href=f"#{place}"))
      for place, text in links
    ]
    body.append(element("nav", element("ul", *items), aria_label="Runs"))
    body.append(side_by_side(runs, spent))
    other = differing(runs)
    for i, run in enumerate(runs):
      body.append(element("h2", run.name, id=f"run-{i}"))
      body += _run(run, spent[run.name], notes[run.name], other, "h3")
  body.append(
    element("footer", f"Written by diffdistill {__version__}.", class_="muted")
  )
  head = element(
    "head",
    element("meta", charset="utf-8"),
    element(
      "meta", name="viewport", content="width=device-width, initial-scale=1"
    ),
    element("meta", http_equiv="Content-Security-Policy", content=POLICY),
    element("meta", name="color-scheme", content="light dark"),
    element("title", f"{title} · diffdistill"),
    # A server would be asked for one otherwise.
    element("link", rel="icon", href="data:,"),
    element("style", Html(STYLE)),
  )
  page = element(
    "html", head, element("body", element("main", *body)), lang="en"
  )
  return f"<!doctype html>\n{page}\n"


def _run(
  run: Run,
  spent: Mapping[str, Cost],
  notes: Sequence[str],
  other: Sequence[str],
  heading: str,
) -> list[Html]:
  """The sections of one run; `heading` is the level of their titles."""
  below = {"h2": "h3", "h3": "h4"}[heading]
  parts = [_about(run)]
  if notes:
    parts.append(
      element("ul", *(element("li", n) for n in notes), class_="notes")
    )
  parts += [
    headline(run),
    evaluated(run, heading),
    sheets(run.compared, run.sheets, heading),
  ]
  parts += [element(heading, "What it took"), cost_card(spent), cost_notes()]
  parts.append(element(heading, "Stages"))
  cards = [
    stage_card(run, stage, logs, spent[stage], below)
    for stage, logs in run.stages.items()
  ]
  if cards:
    parts.append(element("div", *cards, class_="cards"))
  else:
    parts.append(element("p", "None is known."))
  return [*parts, _config(run, other, heading)]


def _about(run: Run) -> Html:
  """The recipe, the data and the time of the last record."""
  words = []
  stages = run.config.get("run")
  if isinstance(stages, list):
    words.append(" → ".join(map(str, stages)))
  data = run.config.get("data")
  source = data.get("source") if isinstance(data, dict) else None
  if isinstance(source, dict) and "kind" in source:
    words.append(f"on {source['kind']}")
  begun = [log for log in run.rounds if log.state != "not begun"]
  done = [log for log in run.rounds if log.finished]
  words.append(
    f"{len(done)} of {len(run.rounds)} rounds finished"
    if begun
    else "not begun"
  )
  if run.written is not None:
    words.append(f"last written {run.written:%-d %B %Y, %H:%M} UTC")
  return element("p", " · ".join(words), class_="muted")


def _config(run: Run, other: Sequence[str], heading: str) -> Html:
  """All fields, folded; those that differ from other runs' are set off."""
  rows: list[list[str]] = []
  for path, value in flat(run.config):
    name = broken(path)
    if path in other:
      name = element("mark", name)
    rows.append([name, written(value)])
  made = table(["field", "value"], rows, caption="The config", words=2)
  say = f"{len(rows)} fields"
  if other:
    say += (
      f", {sum(path in other for path, _ in flat(run.config))} of which differ"
    )
  return join(
    [
      element(heading, "Config"),
      element(
        "details",
        element("summary", say),
        element("div", made, class_="values"),
      ),
    ]
  )
