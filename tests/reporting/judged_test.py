"""The best student at each number of steps, and the spread of repeats."""

import math

import pytest
from etils import epath

from diffdistill.evaluation.curves import Point
from diffdistill.judging.summaries import is_summary
from diffdistill.reporting.judged import Judged, read_judged
from diffdistill.system.files import write_json

METRIC = "FID"


def written(*rows, **facts):
  keys = ("model", "steps", METRIC)
  return {
    "metric": METRIC,
    **facts,
    "rows": [dict(zip(keys, row, strict=True)) for row in rows],
  }


JUDGED = Judged(
  summary=written(
    ("teacher", 64, 2.0),
    ("teacher", 4, 30.0),
    ("tuned", 4, 1.0),
    ("halve/004", 4, 5.0),
    ("moments/004", 4, 4.0),
    ("moments/004 last", 4, 3.0),
    ("halve/001", 1, 9.0),
    ("halve/002", 2, None),
    num_images=100,
  )
)


def test_the_best_student_of_each_number_of_steps_is_found():
  best = {steps: row["model"] for steps, row in JUDGED.best().items()}
  # Neither another teacher nor a round's last weights can be the best.
  assert best == {1: "halve/001", 4: "moments/004"}
  assert list(JUDGED.of_teacher()) == [4, 64]
  assert JUDGED.teacher == "teacher"


def test_no_student_is_the_best_if_the_judge_is_not_trusted():
  facts = {**JUDGED.summary, "judge_trusted": False}
  assert Judged(summary=facts).best() == {}


def test_a_value_that_is_not_finite_is_no_distance():
  judged = Judged(
    summary=written(
      ("teacher", 4, math.nan),
      ("a/004", 4, math.inf),
      ("b/004", 4, 1.0),
      ("c/002", 2, 1e308),
    )
  )
  assert judged.of_teacher() == {}
  assert [row["model"] for row in judged.best().values()] == ["b/004"]


def test_evaluations_with_other_seeds_give_the_spread(tmp_path):
  workdir, notes = epath.Path(tmp_path), []
  first = written(("teacher", 4, 2.0), ("a/004", 4, 3.0), seed=0)
  for name, summary in {
    "evaluation.json": first,
    "evaluated/evaluation_9_a.json": first,
    "evaluated/evaluation_9_b.json": written(("a/004", 4, 5.0), seed=1),
    "evaluated/evaluation_9_c.json": written(("a/004", 4, 4.0), seed=2),
    # This evaluation has other settings, so it is no repeat.
    "evaluated/evaluation_5_d.json": written(("a/004", 4, 9.0), num_images=5),
  }.items():
    (workdir / name).parent.mkdir(exist_ok=True)
    write_json(workdir / name, summary)
  (workdir / "evaluated" / "evaluation_9_e.json").write_text("{")
  judged = read_judged(workdir / "evaluation.json", notes)
  assert judged is not None
  assert judged.spreads == {("a/004", 4): (3.0, 5.0)}
  assert judged.points(METRIC) == {
    "teacher": (Point(4.0, 2.0, 2.0, 2.0),),
    "a": (Point(4.0, 3.0, 3.0, 5.0),),
  }
  (note,) = notes
  assert "evaluation_9_e.json is damaged" in note


@pytest.mark.parametrize(
  "damaged",
  [
    None,
    [],
    {},
    {"metric": METRIC},
    written(("teacher", 0, 1.0)),
    {"metric": METRIC, "rows": []},
    {"metric": METRIC, "rows": [3]},
    {"metric": METRIC, "rows": [{"model": "a"}]},
    {"metric": METRIC, "rows": [{"model": "a", "steps": 1, METRIC: "x"}]},
    {"metric": 3, "rows": [{"model": "a", "steps": 1}]},
  ],
)
def test_a_value_without_metric_or_rows_is_no_evaluation(damaged):
  assert not is_summary(damaged)
