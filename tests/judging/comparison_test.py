"""Rows of a comparison: facts, speeds, and which models are shown."""

import json

import numpy as np
import pytest
from etils import epath

from diffdistill.evaluation import drawing
from diffdistill.evaluation.settings import Settings
from diffdistill.judging.comparison import compare
from diffdistill.judging.evaluate import Evaluation, write_evaluation

SETTINGS = Settings(num_images=32, batch_size=8, gap_images=13)


@pytest.fixture
def compared(contestant, judge_by):
  """The rows and images of a teacher and three versions of a student."""
  random = np.random.default_rng(0)
  data = random.uniform(-1, 1, (40, 2, 2, 1)).astype(np.float32)
  said = []
  rows, images = compare(
    [
      contestant("teacher", (1, 4), facts={"paper": "denoising"}),
      contestant("halve/002", (2,), facts={"paper": "x", "passes": 7}),
      # This student at 2 steps draws the images of the teacher at 4 steps.
      contestant("moments/002", (2,), 1.0),
      contestant("moments/002 last", (2,), 2.0, shown=False),
    ],
    judge_by(data),
    SETTINGS,
    said.append,
  )
  assert len(said) == len(rows)
  return rows, images


def test_there_is_a_row_for_each_model_and_number_of_steps(compared):
  rows, _ = compared
  assert [(row["model"], row["steps"]) for row in rows] == [
    ("teacher", 4),
    ("teacher", 1),
    ("halve/002", 2),
    ("moments/002", 2),
    ("moments/002 last", 2),
  ]
  gaps = [row["teacher_gap"] for row in rows]
  assert gaps[0] == gaps[3] == 0
  assert min(gaps[1], gaps[2], gaps[4]) > 0.05


def test_facts_of_a_model_are_columns_of_its_rows(compared):
  rows, _ = compared
  assert [row.get("paper") for row in rows[:3]] == [
    "denoising",
    "denoising",
    "x",
  ]
  assert rows[2]["passes"] == 7
  assert "passes" not in rows[0]


def test_speed_up_is_against_the_teacher_at_its_most_steps(compared):
  rows, _ = compared
  # Four batches of 8 images take `steps` seconds each; the first does not
  # count.
  assert [row["images_per_second"] for row in rows] == [2, 8, 4, 4, 4]
  assert [row["speed_up"] for row in rows] == [1, 4, 2, 2, 2]
  assert {row["timed_batches"] for row in rows} == {3}
  assert {row["timed_batch_size"] for row in rows} == {8}


def test_a_model_that_is_not_shown_is_in_no_picture(
  compared, tmp_path, monkeypatch
):
  rows, images = compared
  assert list(images) == [
    "teacher, 4 steps",
    "teacher, 1 step",
    "student of halve, 2 steps",
    "student of moments, 2 steps",
  ]
  assert {len(shown) for shown in images.values()} == {12}
  drawn, draw = [], drawing.over_steps

  def over_steps(shown, *more, **named):
    drawn.extend(shown)
    return draw(shown, *more, **named)

  monkeypatch.setattr(drawing, "over_steps", over_steps)
  monkeypatch.setattr(drawing, "as_png", lambda _: b"PNG")
  evaluation = Evaluation(
    metric="FD-x", summary={"seed": 0}, rows=rows, images=images
  )
  write_evaluation(epath.Path(tmp_path), evaluation, print)
  assert {curve.name: [p.x for p in curve.lines[0]] for curve in drawn} == {
    "teacher": [1, 4],
    "halve": [2],
    "moments": [2],
  }
  written = json.loads((tmp_path / "evaluation.json").read_text())
  assert written["seed"] == 0
  assert [row["model"] for row in written["rows"]][-1] == "moments/002 last"


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"num_images": 19}, "num_images is 19; pass 20 or more"),
    ({"gap_images": 0}, "gap_images is 0; pass 1 or more"),
    ({"seed": 2**32}, "seed is 4294967296; pass 0 or more, at most 4294967295"),
    ({"num_steps": ()}, r"num_steps is \(\); pass one or more positive"),
    ({"num_steps": (4, 0)}, r"num_steps is \(4, 0\)"),
  ],
)
def test_settings_out_of_range_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    Settings(**fields)
