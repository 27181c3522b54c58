"""Charts show all values that they can, in light and dark, reproducibly."""

import io
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from diffdistill.evaluation.curves import Curve, Point, curves, families
from diffdistill.evaluation.drawing import (
  VARIABLES,
  as_png,
  as_svg,
  distances,
  over_steps,
  over_updates,
)

ROWS = [
  {"model": "teacher", "steps": 64, "FD": 2.0, "speed": 10.0},
  {"model": "teacher", "steps": 1, "FD": math.nan, "speed": 640.0},
  {
    **{"model": "halve/004", "steps": 4, "FD": 5.0},
    **{"speed": 160.0, "speed_least": 150.0, "speed_most": 190.0},
  },
  {"model": "halve/004 last", "steps": 4, "FD": 1.0, "speed": 1.0},
  {"model": "halve/001", "steps": 1, "FD": 9.0, "speed": None},
]


def exact(x, y):
  return Point(x, y, y, y)


def words(svg):
  return [text.text for text in ElementTree.fromstring(svg).iter("text")]


def test_the_students_of_a_family_are_one_curve():
  assert families(ROWS, "FD") == {
    "teacher": (exact(64.0, 2.0),),
    "halve": (exact(1.0, 9.0), exact(4.0, 5.0)),
  }
  spreads = {("halve/001", 1): (8.0, 11.0)}
  assert families(ROWS, "FD", spreads)["halve"][0] == Point(1.0, 9.0, 8.0, 11.0)
  spreads = {("halve/001", 1): (10.0, 11.0)}
  assert families(ROWS, "FD", spreads)["halve"][0] == Point(1.0, 9.0, 9.0, 11.0)
  assert families(ROWS, "speed")["halve"] == (Point(4.0, 160.0, 150.0, 190.0),)
  assert families(ROWS, "no such column") == {}
  assert families([], "FD") == {}


def test_curves_differ_in_more_than_their_colour():
  made = curves({name: () for name in "tabcdefg"}, "t")
  assert len({(curve.marker, curve.dash) for curve in made}) == len(made)
  assert len({curve.colour for curve in made}) == len(made)


@pytest.mark.parametrize(
  "values",
  [
    [0.0],
    [2.5, 2.6],
    [1e-9, 5.0],
    [math.nan, 0.0, 2.0],
    [math.inf, 1e308],
    [-1e29, 5.0, 1e29],
    [],
  ],
)
def test_any_values_can_be_drawn(values):
  points = tuple(exact(2.0**i, value) for i, value in enumerate(values))
  curve = Curve(name="_$x$ 日本", lines=(points,), colour=0, marker=1)
  for log in (True, None):
    data = as_png(
      over_steps([curve, curve], "FD", log=log, level=(0.0, "noise"))
    )
    with Image.open(io.BytesIO(data)) as read:
      assert read.format == "PNG"
      assert len(np.unique(np.asarray(read))) > 10
    assert len(data) < 100_000
  shown = "nothing to draw" in words(as_svg(over_steps([curve], "FD"), "a"))
  assert shown == (not any(abs(value) < 1e30 for value in values))


def test_an_svg_does_not_change_the_rest_of_its_page():
  names = ("teacher", "<script>alert(1)</script>", "_$\\frac$")
  lines = {name: (exact(1.0, 2.0), exact(8.0, 4.0)) for name in names}
  figure = over_steps(curves(lines, "teacher"), "FD", level=(1.0, "noise"))
  hostile = '"><script>'
  svg = as_svg(figure, hostile)
  root = ElementTree.fromstring(svg)
  assert (root.tag, root.get("role")) == ("svg", "img")
  assert root.get("aria-label") == hostile
  assert {"FD", "sampler steps", "noise", "1", "8", *names} <= set(words(svg))
  tags = {node.tag for node in root.iter()}
  assert tags <= {"svg", "g", "path", "text", "use", "defs", "clipPath", "rect"}
  assert "http" not in svg
  # A fixed colour would be invisible on a dark page.
  assert "var(--ink)" in svg
  assert not any(colour in svg for colour in (*VARIABLES, "#000"))


def test_a_chart_says_that_its_judge_is_not_trusted():
  evaluation = {"metric": "FD", "rows": ROWS, "FD of two samples of 9": 0.5}
  found = words(as_svg(distances(evaluation), "a"))
  assert {"FD (lower is better)", "two samples of real images"} <= set(found)
  evaluation = {"metric": "FD", "rows": ROWS, "judge_trusted": False}
  found = words(as_svg(distances(evaluation), "a"))
  assert "FD (its judge is NOT TRUSTED)" in found
  assert "two samples of real images" not in found


def test_a_figure_gives_the_same_svg_each_time_with_unique_names():
  def draw(name):
    shown = curves(families(ROWS, "FD"), "teacher")
    return as_svg(over_steps(shown, "FD"), name)

  def names(svg):
    found = [node.get("id") for node in ElementTree.fromstring(svg).iter()]
    return {name for name in found if name}

  assert draw("one") == draw("one")
  assert names(draw("one"))
  assert not names(draw("one")) & names(draw("two"))


def test_a_spread_is_an_error_bar_and_a_band():
  exactly = (exact(1.0, 2.0), exact(4.0, 4.0))
  spread = (Point(1.0, 2.0, 1.0, 3.0), exact(4.0, 4.0))
  exactly, spread = (
    over_steps([Curve(name="a", lines=(line,), colour=0)], "FD").axes[0]
    for line in (exactly, spread)
  )
  assert (len(exactly.containers), len(exactly.collections)) == (0, 0)
  assert len(spread.containers) == 1
  band = spread.collections[-1].get_paths()[0]
  assert {(1.0, 1.0), (1.0, 3.0), (4.0, 4.0)} <= set(map(tuple, band.vertices))


def test_a_spread_down_to_zero_is_drawn_on_a_logarithmic_axis():
  spread = (Point(1.0, 2000.0, 0.0, 3000.0), Point(4.0, 40.0, 39.0, 57.0))
  curve = Curve(name="speed", lines=(spread,), colour=0)
  assert "<path" in as_svg(over_steps([curve], "images a second"), "speeds")


def test_labels_of_steps_do_not_overlap():
  steps = (1.0, 2.0, 1000.0, 1010.0, 1024.0)
  line = tuple(exact(step, 70.0) for step in steps)
  svg = as_svg(over_steps([Curve(name="a", lines=(line,), colour=0)], "FD"), "")
  found = words(svg)
  assert [f"{x:g}" for x in steps if f"{x:g}" in found] == ["1", "2", "1000"]


def test_a_long_line_makes_a_short_svg_and_keeps_its_spike():
  values = np.full(5000, 1.0)
  values[3217] = 9.0
  line = tuple(exact(float(i), float(y)) for i, y in enumerate(values))
  loss = [Curve(name="loss", lines=(line,), colour=0)]
  figure = over_updates(
    {"loss": loss, "norm": loss}, 5000, [(0, 4000, "008"), (4000, 5000, "004")]
  )
  svg = as_svg(figure, "loss of halve")
  assert len(svg) < 60_000
  assert {"loss", "norm", "updates", "008", "004", "5k"} <= set(words(svg))
  top, bottom = figure.axes[0].get_ylim()[::-1]
  assert bottom < 1.0
  assert top > 9.0
