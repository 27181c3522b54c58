"""Runs that differ only in a seed are one curve with a spread."""

from markupsafe import Markup

from diffdistill.evaluation.curves import Point
from diffdistill.evaluation.drawing import as_svg, distances
from diffdistill.judging.evaluate import Evaluation
from diffdistill.reporting import charts
from diffdistill.reporting.gather import gather
from diffdistill.reporting.repeated_runs import merged, repeats
from diffdistill.system.files import read_json, write_json


def test_runs_are_repeats_if_only_their_seeds_differ():
  configs = {
    "a": {"seed": 0, "steps": 4, "evaluation": {"seed": 1}},
    "b": {"seed": 1, "steps": 4, "evaluation": {"seed": 2}},
    "c": {"seed": 1, "steps": 8, "evaluation": {"seed": 2}},
    "d": {"seed": 2, "steps": 4, "evaluation": {"seed": 2, "num_images": 9}},
  }
  assert repeats(configs) == {"a, b": ["a", "b"], "c": ["c"], "d": ["d"]}


def test_repeats_are_drawn_as_a_median_with_its_spread():
  lines = {
    ("a", "halve"): (Point(1, 5, 4, 6), Point(2, 3, 3, 3)),
    ("b", "halve"): (Point(1, 9, 9, 9),),
    ("c", "halve"): (Point(1, 6, 6, 7),),
    ("d", "halve"): (Point(1, 0, 0, 0),),
  }
  assert merged(lines, {"a, b, c": ["a", "b", "c"], "d": ["d"]}) == {
    ("a, b, c", "halve"): (Point(1, 6, 4, 9), Point(2, 3, 3, 3)),
    ("d", "halve"): (Point(1, 0, 0, 0),),
  }


def test_a_joint_chart_names_the_repeats(write_run):
  def edit(config):
    config["seed"] += 1

  workdirs = [write_run("one"), write_run("two", edit=edit)]
  (chart,) = charts.joint([gather(w, w.name) for w in workdirs])
  assert "one, two: halve" in chart
  assert "two: teacher" in chart
  assert "one: halve" not in chart


def test_page_file_and_notebook_have_the_same_curves(write_run):
  workdir = write_run()
  summary = read_json(workdir / "evaluation.json")
  other = {**summary, "seed": 1}
  other["rows"] = [
    {**row, "FD-classifier": row["FD-classifier"] * 2}
    for row in summary["rows"]
  ]
  (workdir / "evaluated").mkdir()
  write_json(workdir / "evaluated" / "evaluation_2000_a.json", other)
  run = gather(workdir, "run")
  spreads = run.judged.spreads
  assert spreads["teacher", 64] == (0.0695758, 2 * 0.0695758)
  rows = summary.pop("rows")
  evaluation = Evaluation(
    metric=summary.pop("metric"),
    summary=summary,
    rows=rows,
    images={},
    spreads=spreads,
  )
  # The evaluation's picture is also the file evaluation.png.
  assert evaluation.curve().png == charts.distance_curve(workdir).png
  page = charts.quality(run)[0]
  name = page[page.index('aria-label="') + 12 :].split('"')[0]
  figure = distances(evaluation.written, spreads)
  assert page == Markup(as_svg(figure, name))
