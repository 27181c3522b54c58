"""Line charts by matplotlib, for PNG files, the page and notebooks.

Import this file inside a function: the import takes a second, and matplotlib
may not be installed. Figures do not use pyplot, so they need no display and do
not change the user's backend.
"""

import contextlib
import html
import io
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from diffdistill.evaluation.curves import (
  INK,
  Curve,
  Number,
  Point,
  curves,
  families,
  is_measured,
)
from diffdistill.evaluation.palette import (
  COLOURS,
  DASHES,
  GRID,
  MARKERS,
  MUTED,
  TEXT,
  VARIABLES,
)
from diffdistill.evaluation.shown import Picture
from diffdistill.evaluation.trust import distrust

# Sizes in points of 1/72 inch. A chart is as wide as a phone, so that its text
# is as large as the page's text on a phone.
WIDTH, HEIGHT, PANEL, LINE = 380, 230, 125, 15
LETTERS = 52
# A line with more points has a marker at some of them only.
MARKED = 12
# An axis is logarithmic if its largest value is this many times the smallest.
DECADES = 30
STYLE = {
  **{"font.family": "DejaVu Sans", "font.size": 10.5, "text.color": MUTED},
  **{"axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlecolor": TEXT},
  **{"axes.titlelocation": "left", "axes.labelcolor": MUTED},
  **{"axes.edgecolor": MUTED, "axes.linewidth": 0.75, "axes.axisbelow": True},
  **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True},
  **{"axes.facecolor": "none", "figure.facecolor": "white"},
  **{"xtick.color": MUTED, "ytick.color": MUTED, "legend.frameon": False},
  **{"grid.color": GRID, "grid.linewidth": 0.75, "lines.linewidth": 1.75},
  **{"lines.markersize": 6, "errorbar.capsize": 3},
}


def distances(
  evaluation: Mapping[str, Any],
  spreads: Mapping[tuple[str, int], tuple[Number, Number]] | None = None,
) -> Figure:
  """A chart of the distances of an evaluation against sampler steps.

  Args:
    evaluation: the content of evaluation.json.
    spreads: the least and the most value of repeated evaluations, by model and
      number of steps.
  """
  metric, rows = evaluation["metric"], evaluation["rows"]
  better, level = "lower is better", None
  if distrust(dict(evaluation)):
    better = "its judge is NOT TRUSTED"
  for name, value in evaluation.items():
    if name.startswith(f"{metric} of two samples") and is_measured(value):
      level = (value, "two samples of real images")
  teacher = rows[0]["model"].split("/")[0]
  shown = curves(families(rows, metric, spreads), teacher)
  return over_steps(shown, f"{metric} ({better})", level=level)


def over_steps(
  shown: Sequence[Curve],
  title: str,
  *,
  log: bool | None = True,
  level: tuple[Number, str] | None = None,
) -> Figure:
  """A chart of values against sampler steps, with error bars for spreads.

  Args:
    shown: the curves; values that the axis cannot show are left out.
    title: the name of the value, and which direction is better.
    log: whether the axis of values is logarithmic; with None the values decide.
    level: a value to mark by a horizontal line, and the name of that line.
  """
  with matplotlib.rc_context(STYLE):
    figure, (axes,) = _figure(shown, 1, HEIGHT)
    axes.set_title(title)
    axes.set_xlabel("sampler steps")
    values = _plot(axes, shown, log, 3)
    if not values:
      axes.text(0.5, 0.5, "nothing to draw", transform=axes.transAxes)
    steps = {p.x for curve in shown for line in curve.lines for p in line}
    if steps:
      axes.set_xscale("log")
    ticks = _apart(sorted(steps))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    if level and (level[0] > 0 or axes.get_yscale() == "linear"):
      axes.axhline(level[0], color=MUTED, linestyle="--", linewidth=1)
      axes.annotate(
        level[1],
        (1, level[0]),
        (0, 3),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        ha="right",
      )
  return figure


def over_updates(
  panels: Mapping[str, Sequence[Curve]],
  length: Number,
  rounds: Sequence[tuple[Number, Number, str]],
) -> Figure:
  """A figure of charts, one above the other, against the updates of one stage.

  Args:
    panels: the curves of each chart, by its title.
    length: the number of updates.
    rounds: the first and last update of each round, and its name.
  """
  with matplotlib.rc_context(STYLE):
    legend = max(panels.values(), key=len)
    figure, every = _figure(legend, len(panels), PANEL * len(panels))
    for axes, (title, shown) in zip(every, panels.items(), strict=True):
      axes.set_title(title, pad=18 if rounds else 6)
      _plot(axes, shown, None, 1)
      axes.set_xlim(0, length)
      axes.xaxis.set_major_formatter(EngFormatter(sep=""))
      axes.tick_params(labelbottom=axes is every[-1])
      for first, last, name in rounds:
        axes.axvline(first, color=MUTED, linewidth=0.75, linestyle=":")
        if (last - first) / length * (WIDTH - 60) > 7 * len(name):
          axes.text(
            (first + last) / 2,
            1.03,
            name,
            transform=axes.get_xaxis_transform(),
            ha="center",
          )
    every[-1].set_xlabel("updates")
  return figure


def as_png(figure: Figure) -> bytes:
  """The bytes of a PNG file with a white background."""
  data = io.BytesIO()
  figure.set_dpi(150)
  with _quiet():
    FigureCanvasAgg(figure).print_png(data)
  return data.getvalue()


def picture(figure: Figure) -> Picture:
  """A picture that shows text at its true size in a notebook."""
  return Picture(as_png(figure), round(96 * figure.get_figwidth()))


def as_svg(figure: Figure, name: str) -> str:
  """The figure as an SVG element, with colours as CSS variables of the page.

  Args:
    figure: a figure that this file made.
    name: what the figure shows, for readers who cannot see it. Each chart of a
      page needs its own name, because identifiers in the element are made from
      it.
  """
  stream = io.StringIO()
  figure.patch.set_visible(False)
  settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name}
  with matplotlib.rc_context(settings), _quiet():
    FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None})
  text = stream.getvalue()
  # Without this, matplotlib's style rule would change all elements of the page.
  text = re.sub(
    r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", text, flags=re.S
  )
  used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
  text = re.sub(
    r' id="([^"]*)"', lambda found: found[0] * (found[1] in used), text
  )
  for colour, variable in VARIABLES.items():
    text = text.replace(colour, variable)
  (box,) = re.findall(r'<svg[^>]* viewBox="([^"]*)"', text)
  body = text[text.index(">", text.index("<svg")) + 1 :]
  head = f'<svg viewBox="{box}" class="chart" role="img"'
  head += f' aria-label="{html.escape(name)}">'
  return head + body.replace("xlink:href", "href").strip()


def _figure(
  shown: Sequence[Curve], panels: int, height: int
) -> tuple[Figure, list[Axes]]:
  """An empty figure; with several curves it has a legend below."""
  names = [textwrap.fill(curve.name, LETTERS) for curve in shown]
  longest = max((len(name) for name in names), default=0)
  columns = max(1, min(len(names), LETTERS // (longest + 6)))
  lines = sum(name.count("\n") + 1 for name in names) / columns
  height += math.ceil(LINE * (lines + 0.5)) * (len(names) > 1)
  figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
  every = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
  if len(names) > 1:
    handles = [Line2D([], [], **_look(curve)) for curve in shown]
    legend = figure.legend(
      handles, names, loc="outside lower left", ncols=columns, handlelength=3
    )
    for text in legend.get_texts():
      text.set_parse_math(False)
  return figure, list(every)


def _plot(
  axes: Axes, shown: Sequence[Curve], log: bool | None, room: Number
) -> list[Number]:
  """Draws the curves and sets the axis of values; returns the values.

  Args:
    axes: empty axes.
    shown: the curves to draw.
    log: whether the axis is logarithmic; with None the values decide.
    room: if an axis spans fewer decades, it has ticks between powers of ten
      too.
  """
  points = [p for curve in shown for line in curve.lines for p in line]
  values = [p.y for p in points if is_measured(p.y)]
  positive = [value for value in values if value > 0]
  if log is None:
    log = 0 < min(values, default=0) * DECADES <= max(values, default=0)
  # A logarithmic axis can only show positive values.
  log = log and bool(positive)
  if log:
    values = positive
    axes.set_yscale("log", nonpositive="clip")
    decades = math.log10(max(values) / min(values))
    between = (1, 2, 5) if decades < room else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=between, numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
  axes.yaxis.set_major_formatter("{x:g}")
  for curve in shown:
    for line in curve.lines:
      kept = [p for p in line if is_measured(p.y) and (p.y > 0 or not log)]
      if log:
        # An error bar down to 0 would never end on this axis.
        kept = [p if p.least > 0 else p._replace(least=p.y) for p in kept]
      _line(axes, curve, kept)
  return values


def _line(axes: Axes, curve: Curve, points: Sequence[Point]) -> None:
  """Draws a line; a spread is an error bar and, between points, a band."""
  look = _look(curve)
  if len(points) > MARKED:
    # Mark a long line at even distances along it.
    look["markevery"] = 0.2
  x, y = [p.x for p in points], [p.y for p in points]
  spread = [[p.y - p.least for p in points], [p.most - p.y for p in points]]
  if any(map(any, spread)):
    axes.errorbar(x, y, yerr=spread, **look)
    least, most = [p.least for p in points], [p.most for p in points]
    axes.fill_between(x, least, most, color=look["color"], alpha=0.15, lw=0)
  else:
    axes.plot(x, y, **look)


def _look(curve: Curve) -> dict[str, Any]:
  ink = curve.colour == INK
  return {
    "color": TEXT if ink else COLOURS[curve.colour % len(COLOURS)],
    "linestyle": DASHES[curve.dash % len(DASHES)],
    "marker": MARKERS[curve.marker % len(MARKERS)],
    # A marker at the end of an axis is shown whole.
    "clip_on": False,
  }


def _apart(steps: Sequence[Number]) -> list[Number]:
  """Selects steps whose labels do not overlap on a logarithmic axis."""
  kept: list[Number] = []
  for step in steps:
    size = math.log(max(steps) / min(steps)) * 0.022 * len(f"{step:g}")
    if not kept or math.log(step / kept[-1]) > size:
      kept.append(step)
  return kept


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences the warning about letters that the font lacks."""
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Glyph")
    yield
