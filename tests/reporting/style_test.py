"""Text and lines have contrast with the background, in light and dark."""

import itertools
import pathlib
import re

import pytest

from diffdistill import reporting
from diffdistill.evaluation import drawing

STYLE = (
  pathlib.Path(reporting.__file__).parent / "templates" / "page.css"
).read_text()
COLOURS = len(drawing.COLOURS)
LIGHT, DARK = (
  dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
  for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
)


def luminance(colour):
  """The relative luminance of a colour (WCAG 2.2)."""
  parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
  linear = [
    p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
  ]
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
  dark, light = sorted((luminance(one), luminance(other)))
  return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_have_contrast(theme):
  for text, ground in itertools.product(
    ("ink", "muted", "strong"), ("ground", "card")
  ):
    assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
  assert contrast(theme["ink"], theme["mark"]) >= 4.5
  for i, ground in itertools.product(range(COLOURS), ("ground", "card")):
    assert contrast(theme[f"c{i}"], theme[ground]) >= 3, (i, ground)


def test_both_themes_name_the_colours_of_charts():
  assert LIGHT.keys() == DARK.keys()
  for colour, variable in drawing.VARIABLES.items():
    assert LIGHT[variable.removeprefix("var(--").removesuffix(")")] == colour


def test_the_style_sheet_loads_nothing():
  assert "url(" not in STYLE
  assert "@import" not in STYLE
