"""Lines go where their numbers are."""

import math
import xml.etree.ElementTree as ElementTree

import pytest

from diffdistill.reporting.charts import (
  LEFT,
  POINTS,
  RIGHT,
  WIDTH,
  Series,
  chart,
  legend,
)
from diffdistill.reporting.scales import along, over


def drawn(*points, **more):
  series = more.pop("series", None) or [
    Series(name="a", lines=(tuple(points),), colour=0)
  ]
  more = {"title": "loss", "alt": "loss against updates", **more}
  return ElementTree.fromstring(chart(series, **more))


def places(svg):
  (line,) = svg.iter("polyline")
  return [tuple(map(float, p.split(","))) for p in line.get("points").split()]


def test_a_line_spans_its_axis_and_rises_with_its_numbers():
  (x0, y0), (x1, y1), (x2, y2) = places(
    drawn((0, 1.0), (50, 2.0), (100, 4.0), x=along(100))
  )
  assert (x0, x1, x2) == (LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT)
  # SVG counts downwards; twice as far up for twice as much.
  assert y0 > y1 > y2
  assert y1 - y2 == pytest.approx(2 * (y0 - y1), abs=0.2)


def test_decades_are_as_far_apart_and_what_cannot_be_shown_is_left_out():
  points = [(1, 1e-3), (2, 0.0), (4, 1e-2), (8, math.inf), (16, 1e-1)]
  (x0, y0), (x1, y1), (x2, y2) = places(
    drawn(*points, x=over([1, 4, 16]), log=True)
  )
  assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
  assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)


def test_a_long_line_is_thinned_without_losing_a_spike():
  points = [(float(i), 1.0) for i in range(5000)]
  points[3217] = (3217.0, 9.0)
  points[4001] = (4001.0, 0.5)
  kept = places(drawn(*points, x=along(5000)))
  assert len(kept) <= POINTS
  highest = min(kept, key=lambda p: p[1])
  lowest = max(kept, key=lambda p: p[1])
  span = WIDTH - RIGHT - LEFT
  assert highest[0] == pytest.approx(LEFT + span * 3217 / 5000, abs=0.1)
  assert lowest[0] == pytest.approx(LEFT + span * 4001 / 5000, abs=0.1)
  assert kept == sorted(kept)


def test_names_and_numbers_are_said():
  svg = drawn(
    (1, 0.5),
    (4, 0.25),
    series=[
      Series(name="<b>", lines=(((1.0, 0.5), (4.0, 0.25)),), colour=3, shape=2)
    ],
    xlabel="sampler steps",
    level=(0.1, "noise"),
    marks=[(1.0, 2.0, "001"), (2.0, 4.0, "002")],
    x=over([1, 4]),
  )
  assert svg.get("role") == "img"
  assert svg.get("aria-label") == "loss against updates"
  said = [text.text for text in svg.iter("text")]
  for word in ("loss", "sampler steps", "noise", "001", "002", "1", "4"):
    assert word in said
  hints = [title.text for title in svg.iter("title")]
  assert hints == ["loss against updates", "<b>: 0.5 at 1", "<b>: 0.25 at 4"]


def test_ticks_do_not_lie_on_each_other():
  svg = drawn((1, 1.0), (1024, 2.0), x=over([1, 2, 1000, 1010, 1024]))
  said = [text.text for text in svg.iter("text")]
  assert "1k" in said
  assert "1.01k" not in said


def test_nothing_to_draw_is_said():
  made = drawn((1, math.nan), (2, math.inf))
  assert made.tag == "p"
  assert made.text == "loss: nothing to draw."


def test_one_point_is_seen():
  assert len(list(drawn((3, 1.0)).iter("circle"))) == 1


def test_a_legend_tells_lines_apart_without_colour():
  series = [
    Series(name=f"s{i}", lines=(), colour=i, shape=i, dash=i) for i in range(4)
  ]
  items = list(ElementTree.fromstring(legend(series)))
  shapes = {
    ElementTree.tostring(item[0][1])
    + (item[0][0].get("stroke-dasharray") or "").encode()
    for item in items
  }
  assert len(shapes) == 4
