"""Line charts as inline SVG, in the page's own colours and type."""

import dataclasses
import math
from collections.abc import Sequence

from diffdistill.reporting.markup import Html, element, join
from diffdistill.reporting.scales import Axis, Number, axis, number, short

# A chart is about as wide as a phone, so that its type is as large as the
# page's there.
WIDTH = 380
LEFT, RIGHT = 50, 12
# Of colours, which style.py gives values, of dashes and of shapes.
COLOURS = 8
DASHES = (None, "5 3", "1.5 3", "8 3 2 3")
SHAPES = 4
# A line has at most so many points: the least and the most of each stretch.
POINTS = 240


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
  """One line, or several of one name.

  Args:
    name: of the legend.
    lines: each (x, y) in the order of x; what is not finite is left out.
    colour: which of the page's; -1 that of the text.
    dash: which of DASHES.
    shape: of the points: which of SHAPES; None shows no points.
  """

  name: str
  lines: tuple[tuple[tuple[Number, Number], ...], ...]
  colour: int
  dash: int = 0
  shape: int | None = None


def chart(
  series: Sequence[Series],
  *,
  title: str,
  alt: str,
  xlabel: str = "",
  height: int = 260,
  x: Axis | None = None,
  log: bool | None = None,
  level: tuple[Number, str] | None = None,
  marks: Sequence[tuple[Number, Number, str]] = (),
) -> Html:
  """A line chart; nothing is drawn but a note where there is nothing to draw.

  Args:
    series: what is drawn; values that the axis cannot show are left out.
    title: the name of what goes up, above the axis.
    alt: what it shows, for who does not see it.
    xlabel: the name of what goes across.
    height: to a width of WIDTH.
    x: the axis across; by default one that holds all.
    log: whether the axis up is logarithmic; by default where it should be.
    level: a value that a line goes across at, and its name.
    marks: stretches across, each (from, to, name), drawn at the top.
  """
  drawn = [
    dataclasses.replace(s, lines=tuple(_shown(line, log) for line in s.lines))
    for s in series
  ]
  points = [p for s in drawn for line in s.lines for p in line]
  if not points:
    return element("p", f"{title}: nothing to draw.", class_="muted")
  heights = [y for _, y in points]
  if level is not None:
    # With room for its name below.
    heights.append(level[0] / 2)
  y = axis(heights, log)
  x = x or axis([p[0] for p in points], False)
  top, bottom = 24 + 14 * bool(marks), 20 + 16 * bool(xlabel)
  box = _Box(
    x=x, y=y, top=top, bottom=height - bottom, left=LEFT, right=WIDTH - RIGHT
  )
  parts = [element("title", alt), *_frame(box, title, xlabel, height)]
  parts += [part for mark in marks for part in _mark(box, mark)]
  if level is not None:
    parts += _level(box, level)
  for s in drawn:
    parts += _line(box, s)
  return element(
    "svg",
    *parts,
    viewBox=f"0 0 {WIDTH} {height}",
    role="img",
    aria_label=alt,
    class_="chart",
  )


def legend(series: Sequence[Series]) -> Html:
  """The names of the lines, each with a piece of it."""
  items = []
  for s in series:
    piece = [
      element(
        "line", x1=1, x2=25, y1=6, y2=6, stroke_dasharray=DASHES[s.dash % 4]
      )
    ]
    if s.shape is not None:
      piece.append(_point(13, 6, s.shape))
    svg = element(
      "svg",
      *piece,
      viewBox="0 0 26 12",
      width=26,
      height=12,
      aria_hidden="true",
      class_=f"series {_colour(s)}",
    )
    items.append(element("li", svg, f" {s.name}"))
  return element("ul", *items, class_="legend")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Box:
  """The rectangle that is drawn in, in the chart's units."""

  x: Axis
  y: Axis
  top: Number
  bottom: Number
  left: Number
  right: Number

  def across(self, value: Number) -> Number:
    return round(self.left + (self.right - self.left) * self.x(value), 1)

  def up(self, value: Number) -> Number:
    return round(self.bottom - (self.bottom - self.top) * self.y(value), 1)


def _frame(box: _Box, title: str, xlabel: str, height: int) -> list[Html]:
  """The axes' names, ticks and grid."""
  parts = [element("text", title, x=4, y=14, class_="name")]
  for tick in box.y.ticks:
    y = box.up(tick)
    parts.append(
      element("line", x1=box.left, x2=box.right, y1=y, y2=y, class_="grid")
    )
    parts.append(
      element("text", short(tick), x=box.left - 6, y=y + 3.5, text_anchor="end")
    )
  last = -math.inf
  for tick in box.x.ticks:
    x, text = box.across(tick), short(tick)
    half = 3.2 * len(text)
    if x - half < last + 4:
      continue  # it would lie on the one before
    last = x + half
    parts.append(
      element(
        "line", x1=x, x2=x, y1=box.bottom, y2=box.bottom + 4, class_="tick"
      )
    )
    parts.append(
      element("text", text, x=x, y=box.bottom + 16, text_anchor="middle")
    )
  if xlabel:
    middle = (box.left + box.right) / 2
    parts.append(
      element("text", xlabel, x=middle, y=height - 4, text_anchor="middle")
    )
  return parts


def _mark(box: _Box, mark: tuple[Number, Number, str]) -> list[Html]:
  first, last, name = mark
  left, right = box.across(first), box.across(last)
  parts = []
  if first > box.x.low:
    parts.append(
      element(
        "line", x1=left, x2=left, y1=box.top - 12, y2=box.bottom, class_="mark"
      )
    )
  if right - left > 6.5 * len(name):
    parts.append(
      element(
        "text",
        name,
        x=(left + right) / 2,
        y=box.top - 4,
        text_anchor="middle",
      )
    )
  return parts


def _level(box: _Box, level: tuple[Number, str]) -> list[Html]:
  value, name = level
  y = box.up(value)
  return [
    element("line", x1=box.left, x2=box.right, y1=y, y2=y, class_="level"),
    element("text", name, x=box.right, y=y + 12, text_anchor="end"),
  ]


def _line(box: _Box, series: Series) -> list[Html]:
  lines, points = [], []
  for line in series.lines:
    places = [(box.across(x), box.up(y)) for x, y in line]
    if len(places) > 1:
      lines.append(
        element(
          "polyline",
          points=" ".join(f"{x:g},{y:g}" for x, y in places),
          stroke_dasharray=DASHES[series.dash % 4],
        )
      )
    elif places and series.shape is None:
      points.append(_point(*places[0], 0))
    if series.shape is not None:
      for (x, y), place in zip(line, places, strict=True):
        hint = element("title", f"{series.name}: {number(y)} at {short(x)}")
        points.append(element("g", hint, _point(*place, series.shape)))
  # One group: its colour is that of all.
  return [element("g", *lines, *points, class_=f"series {_colour(series)}")]


def _point(x: Number, y: Number, shape: int, r: Number = 3.5) -> Html:
  """A disc, square, triangle or diamond around a place."""
  if shape % SHAPES == 0:
    return element("circle", cx=x, cy=y, r=r, class_="point")
  d = (
    f"M{x - 3:g} {y - 3:g}h6v6h-6z",
    f"M{x:g} {y - 4:g}l4 7h-8z",
    f"M{x:g} {y - 4.5:g}l4 4.5l-4 4.5l-4-4.5z",
  )[shape % SHAPES - 1]
  return element("path", d=d, class_="point")


def _shown(
  line: Sequence[tuple[Number, Number]], log: bool | None
) -> tuple[tuple[Number, Number], ...]:
  """What can be drawn of a line, thinned so that no spike is lost."""
  kept = [p for p in line if math.isfinite(p[1]) and (p[1] > 0 or not log)]
  if len(kept) <= POINTS:
    return tuple(kept)
  size = math.ceil(2 * len(kept) / POINTS)
  thinned = []
  for i in range(0, len(kept), size):
    some = kept[i : i + size]
    ends = {min(some, key=lambda p: p[1]), max(some, key=lambda p: p[1])}
    thinned += sorted(ends)
  return tuple(thinned)


def _colour(series: Series) -> str:
  return "ink" if series.colour < 0 else f"c{series.colour % COLOURS}"


def figure(chart: Html, names: Sequence[Series], caption: str) -> Html:
  """A chart with its legend, where it has more than one line."""
  parts = [chart]
  if len(names) > 1:
    parts.append(legend(names))
  if caption:
    parts.append(element("figcaption", caption))
  return element("figure", join(parts))
