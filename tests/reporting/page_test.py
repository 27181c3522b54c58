"""A page shows the contents of a workdir, and loads nothing."""

import json

import pytest
from etils import epath

from diffdistill.reporting.page import write_report
from diffdistill.system.files import read_json, write_json

HOSTILE = '<img src="https://example.com/x" onerror="alert(1)">'


def text(node):
  return " ".join("".join(node.itertext()).split())


def table(page, caption):
  """The texts of all cells of the table that has this caption."""
  for found in page.iter("table"):
    if found.findtext("caption") == caption:
      return [[text(cell) for cell in row] for row in found.iter("tr")]
  raise AssertionError(f"no table is called {caption!r}")


def shown(cell):
  return float(cell.replace(",", ""))


@pytest.mark.usefixtures("no_charts")
def test_the_table_has_the_numbers_of_the_evaluation(write_run, report):
  workdir = write_run()
  rows = json.loads((workdir / "evaluation.json").read_text())["rows"]
  page = report(workdir)
  header, *lines = table(page, "Every model at every number of steps")
  assert header[:3] == ["model", "steps", "FD-classifier"]
  assert len(lines) == len(rows)
  for row, line in zip(rows, lines, strict=True):
    cells = dict(zip(header, line, strict=True))
    assert len(cells) == len(row)
    for name, value in row.items():
      cell = cells[name.replace("_", " ")]
      if isinstance(value, str):
        assert cell == value
      else:
        assert shown(cell) == pytest.approx(value, rel=5e-4)
  strong = [text(e) for e in page.iter("strong")]
  assert strong == ["0.1061", "0.1286", "0.1739"]


@pytest.mark.usefixtures("no_charts")
def test_the_headline_compares_students_with_the_teacher(write_run, report):
  page = text(report(write_run()))
  assert (
    "In 1 step, halve/001 is at 0.1739 FD-classifier; the best of teacher is"
    " 0.06958, in 64 steps." in page
  )
  assert (
    "0.1061 halve/004; its teacher has 0.3292 in as many steps. The teacher is"
    " as near in 64 steps." in page
  )


def test_the_page_is_self_contained(write_run, report):
  workdir = write_run(more={"num_devices": 2, "peak_device_bytes": 2**30})
  page = report(workdir)
  for node in page.iter():
    for name in ("src", "href", "srcset", "poster", "data"):
      value = node.get(name, "data:")
      assert value.startswith(("data:", "#")), (node.tag, value[:50])
    assert node.tag not in ("script", "iframe", "object")
    if node.tag == "img" or node.get("role") == "img":
      assert node.get("alt") or node.get("aria-label")
  said = text(page)
  for words in (
    "Quality for steps",
    "From the same noise",
    "Samples of each round",
    "What it took",
    "Stages",
    "progressive; from teacher; all 3 rounds finished",
    "1497 training images",
    "peak memory, device 1 GiB",
  ):
    assert words in said, words
  fields = len(table(page, "The config")) - 1
  assert f"Config {fields} fields" in said
  # The run took 72 s on two devices.
  assert "device-hours 0.04 time 1m12s on 2 devices" in said
  assert "not recorded" not in said
  title = next(page.iter("title"))
  (viewport,) = [m for m in page.iter("meta") if m.get("name") == "viewport"]
  assert text(title) == "run · diffdistill"
  assert "width=device-width" in viewport.get("content")


@pytest.mark.usefixtures("no_charts")
def test_the_page_of_an_unfinished_run_says_so(write_run, report):
  workdir = write_run(rounds={"teacher": 18, "halve/004": 10}, judged=False)
  page = report(workdir)
  said = text(page)
  assert "2 of" not in said.split("last written")[0]
  assert "1 of 4 rounds finished" in said
  assert "Not judged yet: diffdistill evaluate --workdir=" in said
  assert ["halve/004", "under way", "10 of 18", "0.1"] in table(
    page, "The rounds of halve"
  )
  assert ["halve/002", "not begun", "0 of 18", "-"] in table(
    page, "The rounds of halve"
  )


@pytest.mark.usefixtures("no_charts")
def test_shares_of_peak_and_of_time_are_shown_if_known(write_run, report):
  machine = {"num_devices": 2, "device_kind": "TPU v5e"}
  workdir = write_run(more=machine)
  cards = [text(card) for card in report(workdir).iter("article")]
  assert not [card for card in cards if "time not of updates" in card]
  # The recorded updates took 1 s each, twice the time in this benchmark.
  stages = [{"stage": "teacher", "bare_seconds_per_update": 0.5}]
  benchmark = {"devices": "2 TPU v5e", "stages": stages}
  write_json(workdir / "benchmark.json", benchmark)
  page = report(workdir)
  teacher, halve = (text(card) for card in page.iter("article"))
  assert "updates 18" in teacher
  assert "time not of updates 50.0 %" in teacher
  assert "share of peak FLOP/s 0.0 %" in teacher
  assert "time not of updates" not in halve


@pytest.mark.usefixtures("no_charts")
def test_a_given_teacher_costs_nothing(write_run, report):
  def edit(config):
    config["stages"]["teacher"]["source"] = "path:elsewhere/teacher"

  workdir = write_run(edit=edit)
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True)
  path.write_text("".join(line for line in lines if "halve" in line))
  page = report(workdir)
  teacher, halve = (text(card) for card in page.iter("article"))
  about = "denoising; not trained here, but path:elsewhere/teacher"
  assert teacher == f"teacher {about}"
  assert "time 54s" in halve
  # The student's operations are counted. The teacher is of another run, so its
  # operations are none of this run's.
  assert "not counted" not in text(page)


def test_the_page_of_a_run_that_has_not_begun_says_so(write_run, report):
  workdir = write_run(judged=False)
  (workdir / "metrics.jsonl").unlink()
  for name in ("teacher", "halve", "samples"):
    (workdir / name).rmtree()
  said = text(report(workdir))
  assert "not begun" in said
  assert "Nothing is recorded yet" in said
  assert "There are no sheets of samples yet." in said


@pytest.mark.usefixtures("no_charts")
def test_finished_models_that_are_not_judged_are_named(write_run, report):
  workdir = write_run()
  path = workdir / "evaluation.json"
  written = read_json(path)
  written["rows"] = [r for r in written["rows"] if r["model"] != "halve/002"]
  write_json(path, written)
  assert "Finished, but not judged here: halve/002." in text(report(workdir))


def test_hostile_text_is_escaped(write_run, report):
  def edit(config):
    config["stages"]["halve"]["note"] = HOSTILE

  workdir = write_run(edit=edit, more={f"{HOSTILE}/loss": 2.0})
  path = workdir / "evaluation.json"
  written = read_json(path)
  written["rows"][0]["model"] = written["reference"] = HOSTILE
  write_json(path, written)
  page = report(workdir)
  assert HOSTILE in text(page)
  assert all("example.com" not in n.get("src", "") for n in page.iter())
  assert not [n for n in page.iter() if n.get("onerror")]


def test_several_runs_are_compared_side_by_side(write_run, report):
  def edit(config):
    config["seed"] = 4
    config["stages"]["extra"] = {"a": 1, "b": 2}

  first = write_run("one", more={"num_devices": 1})
  second = write_run("two", edit=edit)
  page = report(first, second)
  header, *lines = table(page, "FD-classifier of every model of every run")
  assert header == ["model", "steps", "one", "two"]
  assert ["halve/004", "4", "0.1061", "0.1061"] in lines
  assert table(page, "The fields that differ") == [
    ["field", "one", "two"],
    ["seed", "3", "4"],
    ["stages.extra", "-", "2 fields"],
  ]
  took = table(page, "What each run took")
  assert [row[:3] for row in took[1:]] == [
    ["one", "0.02", "1m12s"],
    ["two", "-", "1m12s"],
  ]
  assert {text(e) for e in page.iter("mark")} == {
    "seed",
    "stages.extra.a",
    "stages.extra.b",
  }
  ids = [n.get("id") for n in page.iter() if n.get("id")]
  links = [n.get("href") for n in page.iter("a")]
  assert len(ids) == len(set(ids))
  assert links == ["#side-by-side", "#run-0", "#run-1"]
  assert {link.removeprefix("#") for link in links} <= set(ids)
  assert "judged by its own classifier" in text(page)


@pytest.mark.usefixtures("no_charts")
def test_the_best_of_runs_with_equal_settings_is_set_in_bold(write_run, report):
  first, second = write_run("one"), write_run("two")
  path = second / "evaluation.json"
  written = read_json(path)
  (row,) = (r for r in written["rows"] if r["FD-classifier"] == 0.106069)
  row["FD-classifier"] = 0.1
  write_json(path, written)

  def best(page):
    (found,) = [
      t
      for t in page.iter("table")
      if "of every run" in (t.findtext("caption") or "")
    ]
    return [text(e) for e in found.iter("strong")]

  assert best(report(first, second)) == ["0.1"]
  write_json(path, {**written, "num_images": 500})
  page = report(first, second)
  assert best(page) == []
  assert "These settings differ: num images." in text(page)


@pytest.mark.usefixtures("no_charts")
def test_runs_of_the_same_name_are_shown_by_their_paths(write_run, report):
  first, second = write_run("a/run"), write_run("b/run")
  page = report(first, second)
  assert text(next(page.iter("h1"))) == f"{first}, {second}"
  assert "Nothing: the configs are the same." in text(page)


def test_wrong_arguments_are_refused_in_one_line(write_run, tmp_path):
  workdir, out = write_run(), epath.Path(tmp_path) / "report.html"
  for workdirs, where, words in (
    ([], out, r"no workdir is given; pass --workdir=A"),
    (
      [workdir],
      out.with_suffix(".pdf"),
      r"report\.pdf'; pass a name that ends in .html, .json or .csv",
    ),
    ([workdir, workdir], out, r"is given twice; pass it once"),
    ([workdir, workdir / "samples"], out, r"samples holds no run"),
  ):
    with pytest.raises(ValueError, match=words) as refused:
      write_report(workdirs, where, lambda line: None)
    assert "\n" not in str(refused.value)
  assert not out.exists()
