"""A page has charts, and can be written without some packages."""

import json
import sys

import pytest
from etils import epath

from diffdistill.reporting.page import write_report


def text(node):
  return " ".join("".join(node.itertext()).split())


def test_the_same_run_gives_the_same_page(write_run, tmp_path):
  workdir = write_run()
  pages = []
  for name in ("a.html", "b.html"):
    out = epath.Path(tmp_path) / name
    write_report([workdir], out, lambda line: None)
    pages.append(out.read_text())
  assert pages[0] == pages[1]


def test_charts_show_the_recorded_values(write_run, report):
  drawn = list(report(write_run()).iter("svg"))
  names = [chart.get("aria-label") for chart in drawn]
  assert len(names) == len(set(names)) == 5
  assert names[0].startswith("run: FD-classifier (lower is better) against")
  assert "halve 0.1739 in 1, 0.1286 in 2, 0.1061 in 4" in names[0]
  assert names[1].startswith("run: gap from the teacher")
  assert names[2].startswith("run: images a second")
  assert names[3:] == [
    f"run: loss, gradient norm of {stage} against updates"
    for stage in ("teacher", "halve")
  ]
  said = [text(word) for word in drawn[0].iter("text")]
  assert {"teacher", "halve", "two samples of real images"} <= set(said)
  # No curve has the distance 0.11, which is of a round's last weights.
  assert "0.11 " not in names[0]
  assert {"004", "002", "001"} <= {text(w) for w in drawn[4].iter("text")}


@pytest.mark.usefixtures("no_charts")
def test_a_machine_without_matplotlib_gets_a_page_without_charts(
  write_run, report
):
  page = report(write_run("one"), write_run("two"))
  assert not list(page.iter("svg"))
  (line,) = [n for n in page.iter("li") if "matplotlib" in text(n)]
  assert "run `pip install matplotlib`" in text(line)
  assert [c.text for c in page.iter("caption")][-1] == "The config"


def test_a_machine_without_jinja2_gets_the_numbers_alone(
  write_run, tmp_path, monkeypatch
):
  workdir, out = write_run(), epath.Path(tmp_path) / "report.html"
  monkeypatch.delitem(sys.modules, "diffdistill.reporting.rendered", False)
  monkeypatch.setitem(sys.modules, "jinja2", None)
  with pytest.raises(ValueError, match=r"run `pip install jinja2`, or pass"):
    write_report([workdir], out, lambda line: None)
  assert not out.exists()
  write_report([workdir], out.with_suffix(".json"), lambda line: None)
  numbers = json.loads(out.with_suffix(".json").read_text())
  assert numbers["name"] == "run"
