"""Tables and pictures display in a terminal and in a notebook."""

import dataclasses
from xml.etree import ElementTree

from diffdistill.evaluation.shown import Picture, Table

ROWS = (
  {"model": "teacher", "steps": 1024, "FD": 2.34567},
  {"model": "a<b", "steps": 4, "FD": None},
)


def test_a_table_is_aligned():
  assert repr(Table(ROWS)) == "\n".join(
    [
      "model    steps     FD",
      "-------  -----  -----",
      "teacher   1024  2.346",
      "a<b          4      -",
    ]
  )
  assert repr(Table()) == "(no rows)"


def test_a_table_in_a_notebook_has_the_same_cells():
  table = ElementTree.fromstring(Table(ROWS)._repr_html_())
  cells = [[cell.text for cell in row] for row in table]
  assert cells == [
    ["model", "steps", "FD"],
    ["teacher", "1024", "2.346"],
    ["a<b", "4", "-"],
  ]
  assert [cell.get("style") for cell in table[1]] == [
    "text-align: left",
    "text-align: right",
    "text-align: right",
  ]


def test_a_table_shows_dataclasses_and_keeps_them():
  @dataclasses.dataclass(frozen=True)
  class Model:
    name: str
    num_steps: int | None

  models = Table((Model("teacher", None), Model("halve/004", 4)))
  assert repr(models).splitlines()[2:] == [
    "teacher            -",
    "halve/004          4",
  ]
  assert models[1].num_steps == 4


def test_a_table_shows_a_value_with_its_spread():
  row = {"speed": 412.3, "speed_least": 380.1, "speed_most": 440.2}
  assert repr(Table([row])).splitlines()[2] == "410 (380 to 440)"


def test_a_picture_is_shown_and_saved(tmp_path):
  assert repr(Picture(b"png")) == "Picture(3 bytes)"
  assert Picture(b"png")._repr_png_() == b"png"
  assert Picture(b"png", 420)._repr_png_() == (b"png", {"width": 420})
  Picture(b"png").save(tmp_path / "a.png")
  assert (tmp_path / "a.png").read_bytes() == b"png"
