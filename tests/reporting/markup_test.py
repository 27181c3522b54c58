"""Markup is well formed and escaped, whatever is put in."""

import xml.etree.ElementTree as ElementTree

from diffdistill.reporting.markup import (
  Html,
  broken,
  definitions,
  element,
  join,
  table,
)

HOSTILE = "</td><script>alert('x')</script>&amp;\""


def test_text_and_attributes_are_escaped():
  made = element("p", HOSTILE, title=HOSTILE, class_="a")
  read = ElementTree.fromstring(made)
  assert read.text == HOSTILE
  assert read.attrib == {"title": HOSTILE, "class": "a"}
  assert len(read) == 0


def test_markup_is_taken_as_it_is_and_nests():
  made = element("p", element("b", "a<b"), " c", data_x=None, stroke_width=2)
  assert made == '<p stroke-width="2"><b>a&lt;b</b> c</p>'
  assert isinstance(join(["a", made]), Html)


def test_an_empty_element_is_closed_as_html_wants_it():
  assert element("br") == "<br />"
  assert element("div") == "<div></div>"
  assert element("meta", name="viewport") == '<meta name="viewport" />'


def test_a_name_breaks_after_its_marks_only():
  assert broken("a_b/c.d<") == "a_<wbr />b/<wbr />c.<wbr />d&lt;"
  assert broken("stages.") == "stages."


def test_a_table_names_its_rows_and_columns():
  made = table(
    ["model", "paper", "n"], [[HOSTILE, "b", "1"]], caption="All", words=2
  )
  box = ElementTree.fromstring(made)
  assert box.attrib["class"] == "scroll"
  head, body = box.find(".//thead/tr"), box.find(".//tbody/tr")
  assert head is not None
  assert body is not None
  assert [(c.tag, c.get("class")) for c in head] == [
    ("th", "word"),
    ("th", "word"),
    ("th", None),
  ]
  assert [(c.tag, c.text) for c in body] == [
    ("th", HOSTILE),
    ("td", "b"),
    ("td", "1"),
  ]


def test_definitions_pair_names_and_values():
  made = ElementTree.fromstring(definitions([("a", "1"), ("b", "2")], "facts"))
  assert [e.text for e in made.iter("dt")] == ["a", "b"]
  assert [e.text for e in made.iter("dd")] == ["1", "2"]
