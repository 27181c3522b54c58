"""A comparison keeps its rows and goes on with the first missing row."""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath

from diffdistill.evaluation.settings import Settings
from diffdistill.judging.comparison import compare
from diffdistill.judging.judged_rows import JudgedRows

SETTINGS = Settings(num_images=32, batch_size=8, gap_images=13)
ALL = [(0.5, 4), (0.5, 1), (0.75, 2)]


class KilledError(Exception):
  """Stands for a signal that ends the process."""


@pytest.fixture
def judged(contestant, clock, judge_by, tmp_path):
  """Judges a teacher at 4 and 1 steps and a student at 2 steps; keeps the rows.

  Returns the rows, the images, the weights and steps of each new row, and the
  reported lines.
  """
  random = np.random.default_rng(0)
  data = random.uniform(-1, 1, (40, 2, 2, 1)).astype(np.float32)

  def judge(*, teacher=0.5, student=0.75, kill=None, **fields):
    settings = dataclasses.replace(SETTINGS, **fields.pop("settings", {}))
    kept = JudgedRows(
      folder=epath.Path(tmp_path),
      made_with={
        "seed": settings.seed,
        "num_images": settings.num_images,
        **fields.pop("made_with", {}),
      },
      devices=fields.pop("devices", "1 cpu"),
      fingerprint=lambda params: f"{float(params):.3f}",
      say=lambda line: said.append(line),
    )
    said = []

    def say(line):
      said.append(line)
      if len(said) == kill:
        raise KilledError

    clock.made.clear()
    rows, images = compare(
      [
        contestant("teacher", fields.pop("steps", (1, 4)), teacher),
        contestant("halve/002", (2,), student, facts={"paper": "x"}),
      ],
      judge_by(data, **fields),
      settings,
      say,
      kept,
    )
    return rows, images, list(clock.made), said

  return judge


def test_a_killed_evaluation_goes_on_with_the_first_missing_row(
  judged, tmp_path
):
  for rows_done in (1, 2):
    with pytest.raises(KilledError):
      judged(kill=rows_done, settings={"seed": rows_done})
    rows, images, made, said = judged(settings={"seed": rows_done})
    assert made == ALL[rows_done:]
    before = [line.endswith("(judged before)") for line in said]
    assert before == [True] * rows_done + [False] * (3 - rows_done)
    for path in tmp_path.rglob("*.npz"):
      path.unlink()
    whole, pictures, made, _ = judged(settings={"seed": rows_done})
    assert made == ALL
    # With the fake clock, even the speeds are the same.
    assert json.dumps(rows) == json.dumps(whole)
    assert images.keys() == pictures.keys()
    for name, shown in images.items():
      np.testing.assert_array_equal(shown, pictures[name])


def test_an_evaluation_can_stop_between_batches_and_loses_one_row(judged):
  batches = iter(range(100))

  def between():
    # A row has four batches, so batch 5 is in the second row.
    if next(batches) == 5:
      raise KilledError

  with pytest.raises(KilledError):
    judged(between=between)
  assert judged()[2] == ALL[1:]
  assert judged()[2] == []


@pytest.mark.parametrize(
  ("change", "made"),
  [
    # All teacher gaps depend on the teacher at its most steps, so a new teacher
    # changes all rows.
    ({"teacher": 0.25}, [(0.25, 4), (0.25, 1), (0.75, 2)]),
    ({"student": 0.25}, [(0.25, 2)]),
    ({"settings": {"seed": 1}}, ALL),
    ({"made_with": {"judge": "another"}}, ALL),
    ({"steps": (1, 8)}, [(0.5, 8), (0.5, 1), (0.75, 2)]),
    ({"steps": (4,)}, []),
    ({"devices": "8 cpu"}, []),
  ],
)
def test_a_row_that_would_be_different_is_made_again(judged, change, made):
  judged()
  rows, _, really_made, _ = judged(**change)
  assert really_made == made
  assert len(rows) == (2 if change.get("steps") == (4,) else 3)
  # Now the new rows are kept, and old rows with the same weights too.
  assert judged(**change)[2] == []
  if not {"teacher", "student"} & change.keys():
    assert judged()[2] == []


def test_a_damaged_row_is_named_and_made_again(judged, tmp_path):
  whole, *_ = judged()
  path = next((tmp_path / "halve" / "002").glob("2_*.npz"))
  data = path.read_bytes()
  # The middle of the file, where the name of the column FD-x is.
  middle = data.index(b"F\0\0\0D\0\0\0-")
  flipped = data[:middle] + b"E" + data[middle + 1 :]
  for damaged in (data[: len(data) // 2], b"", flipped):
    path.write_bytes(damaged)
    rows, _, made, said = judged()
    assert made == [(0.75, 2)]
    assert rows == whole
    (line,) = (line for line in said if line.startswith("warning: "))
    assert line == (
      f"warning: {path} is not used, and its row is made again: it is damaged:"
      " its digest does not match"
    )
  kept = [p.relative_to(tmp_path) for p in tmp_path.rglob("*.*")]
  assert sorted(f"{p.parent}/{p.name.partition('_')[0]}" for p in kept) == [
    "halve/002/2",
    "teacher/1",
    "teacher/4",
  ]


def test_a_model_without_its_weights_keeps_its_judged_row(judged):
  with pytest.raises(
    ValueError, match="teacher has not been judged at 4 steps"
  ):
    judged(teacher=None)
  with pytest.raises(KilledError):
    judged(kill=2)
  rows, _, made, said = judged(student=None)
  assert [row["model"] for row in rows] == ["teacher", "teacher"]
  assert made == []
  assert said[-1].endswith("2 steps  is left out: its weights were left behind")
  whole, *_ = judged()
  rows, images, made, _ = judged(teacher=None, student=None)
  assert (rows, made) == (whole, [])
  assert len(images) == 3
  # A kept row is not used for another seed, so the student's row is missing.
  rows, *_ = judged(student=None, settings={"seed": 1})
  assert len(rows) == 2


def test_speeds_of_other_devices_are_not_compared(judged):
  with pytest.raises(KilledError):
    judged(kill=2)
  rows, *_ = judged(devices="8 cpu")
  assert [row["devices"] for row in rows] == ["1 cpu", "1 cpu", "8 cpu"]
  assert [row["speed_up"] for row in rows] == [1, 4, None]
  assert all("devices" not in row for row in judged(settings={"seed": 1})[0])
