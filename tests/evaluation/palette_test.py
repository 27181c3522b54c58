"""Curves can be told apart by colour-blind readers, and without colours."""

import itertools
import pathlib
import re

import numpy as np
import pytest

from diffdistill.evaluation.curves import Point, curves
from diffdistill.evaluation.drawing import over_steps
from diffdistill.evaluation.palette import COLOURS
from diffdistill.reporting import charts

# Machado, Oliveira and Fernandes 2009, "A Physiologically-based Model for
# Simulation of Color Vision Deficiency", the published matrices for severity
# 1.0. They apply to linear RGB.
VISIONS = {
  "usual": np.eye(3),
  "protanopia": [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
  ],
  "deuteranopia": [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.011820, 0.042940, 0.968881],
  ],
  "tritanopia": [
    [1.255528, -0.076749, -0.178779],
    [-0.078411, 0.930809, 0.147602],
    [0.004733, 0.691367, 0.303900],
  ],
}
# From linear sRGB to CIE XYZ with white D65: IEC 61966-2-1.
XYZ = np.array(
  [
    [0.4124, 0.3576, 0.1805],
    [0.2126, 0.7152, 0.0722],
    [0.0193, 0.1192, 0.9505],
  ]
)
# A distance of 2.3 is just noticeable (Mahy et al. 1994); thin lines and small
# markers need much more.
LEAST_DISTANCE = 20
CSS = pathlib.Path(charts.__file__).parent / "templates" / "page.css"


def linear(colour):
  """The linear RGB of a colour such as #0072b2."""
  c = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
  return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
  """The CIELAB coordinates of a linear RGB colour."""
  ratio = XYZ @ np.clip(rgb, 0, 1) / XYZ.sum(1)
  low = ratio / (3 * (6 / 29) ** 2) + 4 / 29
  x, y, z = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), low)
  return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def seen(colour, vision):
  return lab(VISIONS[vision] @ linear(colour))


def themes():
  """The variables of the page in light and in dark."""
  light, dark = CSS.read_text().split("@media (prefers-color-scheme: dark)")
  dark = dark[: dark.index("* {")]
  return [dict(re.findall(r"--(\w+): (#\w+);", text)) for text in (light, dark)]


def test_the_simulation_agrees_with_known_colours():
  np.testing.assert_allclose(lab(linear("#ffffff")), [100, 0, 0], atol=0.02)
  # The CIELAB of pure sRGB red.
  np.testing.assert_allclose(
    lab(linear("#ff0000")), [53.24, 80.09, 67.20], atol=0.05
  )
  # Grey stays grey, and a dichromat confuses some colours that others do not.
  for vision in VISIONS:
    grey = seen("#808080", vision)
    np.testing.assert_allclose(grey[1:], 0, atol=0.02)
  pair = ("#d55e00", "#7a7000")
  far, near = (
    np.linalg.norm(np.subtract(*(seen(colour, vision) for colour in pair)))
    for vision in ("usual", "protanopia")
  )
  assert near < LEAST_DISTANCE < far


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_reader_can_tell_two_series_apart(theme, vision):
  found = themes()[theme]
  series = [found[f"c{i}"] for i in range(len(COLOURS))] + [found["ink"]]
  nearest = min(
    np.linalg.norm(seen(a, vision) - seen(b, vision))
    for a, b in itertools.combinations(series, 2)
  )
  assert nearest >= LEAST_DISTANCE


def test_no_two_of_twenty_series_look_alike_without_colour():
  names = [f"stage {i}" for i in range(20)]
  points = {name: (Point(1.0, 2.0, 2.0, 2.0),) for name in ("t", *names)}
  lines = over_steps(curves(points, "t"), "FD").axes[0].lines
  grey = {(line.get_marker(), str(line.get_linestyle())) for line in lines}
  dashes = {(line.get_marker(), str(line._dash_pattern)) for line in lines}
  assert len(lines) == 21
  assert len(dashes) == 21
  assert len({marker for marker, _ in grey}) == 8
  # The usual few series differ in their marker alone.
  assert len({line.get_marker() for line in lines[:8]}) == 8
