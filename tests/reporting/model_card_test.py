"""A model card states what was done, and its text cannot harm a reader."""

import markdown_it
import pytest
import yaml
from etils import epath

from diffdistill.interop.model import Model
from diffdistill.reporting.model_card import _public, escaped, without_folders
from diffdistill.training.done import Done, done
from diffdistill.training.records import append_record

HOSTILE = (
  "<script>alert(1)</script>",
  "[a](javascript:alert(1))",
  "![a](http://host/track.png)",
  "**bold** _it_ `code` ~~gone~~ $x$ | cell &lt;b&gt;",
  "# title",
  "a\n---\nlicense: mit\n# title",
  "tab\tand\u202eright-to-left\x1b[31m",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_shows_exactly_its_characters(text):
  renderer = markdown_it.MarkdownIt("gfm-like", {"linkify": False})
  html = renderer.render(f"The teacher: {escaped(text)}.")
  shown = "".join(c if c.isprintable() else " " for c in text)
  shown = " ".join(shown.split())
  for plain, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
    shown = shown.replace(plain, entity)
  assert html.replace("&quot;", '"') == f"<p>The teacher: {shown}.</p>\n"


def fields(**changed):
  return {
    "network": {"kind": "mlp"},
    "schedule": {"kind": "cosine"},
    "output": "x0",
    "precondition": {"kind": "identity"},
    "image_shape": (2, 2, 1),
    "params": {},
    **changed,
  }


@pytest.mark.parametrize(
  ("license_", "remedy"),
  [
    ("mit\nlicense_link: http://host", "text of one line"),
    ("mit: x", "the short name"),
    ("[mit]", "the short name"),
    ("a" * 101, "the short name"),
    ("- mit", "the short name"),
    (" ", "the short name"),
  ],
)
def test_a_licence_is_a_short_name(license_, remedy):
  with pytest.raises(ValueError, match=rf"license is .*; pass {remedy}"):
    Model(**fields(license=license_))
  for name in ("mit", "apache-2.0", "cc-by-nc-sa-4.0", "GPL-3.0+"):
    assert Model(**fields(license=name)).license == name
    # YAML must read the name as text.
    assert yaml.safe_load(yaml.safe_dump({"license": name}))["license"] == name


@pytest.mark.parametrize(
  ("origin", "remedy"),
  [
    ("a\nb", "text of one line"),
    ("a\x1b[31mb", "text of one line"),
    ("a\u202eb", "one line of at most"),
    ("a" * 1001, "one line of at most"),
  ],
)
def test_an_origin_is_one_line_that_can_be_printed(origin, remedy):
  with pytest.raises(ValueError, match=rf"origin is .*; pass {remedy}"):
    Model(**fields(origin=origin))
  assert Model(**fields(origin="EDM, é.pkl")).origin == "EDM, é.pkl"


def test_the_settings_of_a_card_hold_no_path():
  given = {
    "source": "imported:/home/maria/teachers/ddpm",
    "frozen": {"teacher": "path:~/runs/teacher", "classifier": "halve/008"},
    "pairs": {"path": "/scratch/maria", "num_pairs": 8},
    "inception": "C:\\weights\\pt.pth",
    "reference": "gs://bucket/stats.npz",
    "relative": "../stats.npz",
    "home": "~maria",
    "kept": ["v", 1, None, True, 0.5],
  }
  assert _public(given, frozenset({"halve/008"})) == {
    "source": "an imported model",
    "frozen": {"teacher": "another run", "classifier": "halve/008"},
    "pairs": {"num_pairs": 8},
    **dict.fromkeys(
      ("inception", "reference", "relative", "home"), "(a path, left out)"
    ),
    "kept": ["v", 1, None, True, 0.5],
  }


@pytest.mark.parametrize(
  ("value", "shown"),
  [
    ("/home/Maria M/stats of 1.npz", "stats of 1.npz"),
    ("runs/stats.npz", "stats.npz"),
    ("gs://bucket/stats.npz", "stats.npz"),
    ("C:\\data\\stats.npz", "stats.npz"),
    ("1497 training images", "1497 training images"),
    ("to the nearest byte", "to the nearest byte"),
    (7, 7),
  ],
)
def test_a_fact_keeps_only_the_last_part_of_a_path(value, shown):
  assert without_folders(value) == shown


def test_the_number_of_updates_comes_from_the_records(tmp_path):
  workdir = epath.Path(tmp_path)
  assert done(workdir, "halve/004") == Done()
  records = [
    {"round": "halve/004", "step": 28, "distance": 0.5},
    {"round": "halve/004", "step": 42, "distance": 0.25},
    {"round": "halve/002", "step": 200, "distance": 0.1},
    {"round": "halve/004", "step": 49, "distance": None},
    {"round": "halve/004", "step": 56, "distance": 0.25},
  ]
  for record in records:
    append_record(workdir, record)
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write('{"round": "ha')
  # The round ended at update 56, before its plan; the first best update counts.
  assert done(workdir, "halve/004") == Done(updates=56)
  best = Done(updates=56, chosen=42)
  assert done(workdir, "halve/004", "distance") == best
