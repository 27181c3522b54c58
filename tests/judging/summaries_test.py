"""All evaluations of a run are kept, and the largest is copied for reports."""

import json

import pytest
from etils import epath

from diffdistill.judging.summaries import (
  CURVES,
  FILE,
  SHEET,
  keep_summary,
  read_summary,
)
from diffdistill.system.files import write_json


def evaluation(num_images=2000, steps=(8, 1), seed=0, distance=0.5):
  rows = [
    {"model": "teacher", "steps": count, "FD-x": distance} for count in steps
  ]
  return {"metric": "FD-x", "num_images": num_images, "seed": seed} | {
    "rows": rows
  }


@pytest.fixture
def keep(tmp_path):
  """Keeps an evaluation, and returns the reported lines."""

  def keep(summary, pictures=("curves", "sheet")):
    said = []
    names = dict(zip((CURVES, SHEET), pictures, strict=False))
    data = {name: text.encode() for name, text in names.items()}
    keep_summary(epath.Path(tmp_path), summary, data, said.append)
    return said

  return keep


@pytest.fixture
def current(tmp_path):
  """The evaluation that reports use."""
  return lambda: read_summary(epath.Path(tmp_path) / FILE)


def kept(tmp_path):
  """The evaluations on disk, the smallest first."""
  paths = (tmp_path / "evaluated").glob("evaluation_*.json")
  found = [read_summary(epath.Path(path)) for path in paths]
  return sorted(found, key=lambda e: (e["num_images"], len(e["rows"])))


def test_a_smaller_evaluation_does_not_replace_a_larger(
  keep, current, tmp_path
):
  large, small = evaluation(2000), evaluation(100, distance=0.7)
  said = keep(large, ("large curves", "large sheet"))
  assert said[-1] == f"{tmp_path}/evaluation.json is this evaluation"
  said = keep(small, ("small curves", "small sheet"))
  assert said[0].startswith("this evaluation (100 images, 2 rows) is in ")
  assert said[1].startswith(
    f"{tmp_path}/evaluation.json is the larger evaluation in"
    f" {tmp_path}/evaluated/evaluation_2000_"
  )
  assert "(2000 images, 2 rows); remove that file" in said[1]
  assert current() == large
  assert (tmp_path / "evaluation.png").read_text() == "large curves"
  assert (tmp_path / "samples" / "compared.png").read_text() == "large sheet"
  assert kept(tmp_path) == [small, large]
  texts = {
    path.read_text() for path in (tmp_path / "evaluated").glob("*_100_*.png")
  }
  assert texts == {"small curves", "small sheet"}


def test_a_larger_evaluation_replaces_a_smaller(keep, current, tmp_path):
  small, large = evaluation(100), evaluation(2000)
  keep(small)
  keep(large, ("large curves", "large sheet"))
  assert current() == large
  assert (tmp_path / "evaluation.png").read_text() == "large curves"
  assert kept(tmp_path) == [small, large]


def test_with_equal_images_more_rows_win_then_the_newest(
  keep, current, tmp_path
):
  whole = evaluation(steps=(8, 4, 1))
  keep(whole)
  keep(evaluation(steps=(1,)))
  assert current() == whole
  newer = evaluation(steps=(8, 4, 1), seed=1)
  keep(newer)
  assert current() == newer
  assert len(kept(tmp_path)) == 3


def test_an_evaluation_replaces_one_with_the_same_settings(
  keep, current, tmp_path
):
  keep(evaluation(distance=0.5))
  again = evaluation(distance=0.4)
  keep(again, ("curves",))
  assert current() == again
  assert kept(tmp_path) == [again]
  # The old picture is removed, because the new evaluation has none.
  assert not (tmp_path / "samples" / "compared.png").exists()
  # An evaluation replaces one with more rows: the run may have lost a student.
  student = {"model": "halve/001", "steps": 1, "FD-x": 0.6}
  keep({**again, "rows": [*again["rows"], student]})
  keep(again)
  assert current() == again


def test_an_evaluation_that_was_copied_without_its_folder_stays(
  keep, current, tmp_path
):
  large = evaluation(2000)
  write_json(tmp_path / FILE, large)
  (tmp_path / "evaluation.png").write_text("large curves")
  said = keep(evaluation(100))
  assert current() == large
  assert f"larger evaluation in {tmp_path}/evaluation.json" in said[-1]
  assert (tmp_path / "evaluation.png").read_text() == "large curves"


@pytest.mark.parametrize("place", [FILE, "evaluated/evaluation_9000_ab.json"])
def test_a_damaged_evaluation_is_named_and_skipped(
  keep, current, tmp_path, place
):
  path = tmp_path / place
  path.parent.mkdir(exist_ok=True)
  path.write_text("[" * 100_000)
  said = keep(evaluation())
  assert said[1].startswith(f"warning: {path} is damaged: it is not JSON; run")
  assert current() == evaluation()


@pytest.mark.parametrize(
  "text",
  [
    "",
    "[]",
    "{}",
    '{"metric": "FID", "rows"',
    "[" * 100_000,
    json.dumps(evaluation()),  # the file must end with a digest
  ],
)
def test_a_damaged_evaluation_is_refused_in_one_line(tmp_path, text):
  path = epath.Path(tmp_path) / FILE
  path.write_text(text)
  with pytest.raises(ValueError, match="run diffdistill evaluate to write"):
    read_summary(path)


@pytest.mark.parametrize(
  "change",
  [
    {"metric": 3},
    {"rows": []},
    {"rows": {"0": {}}},
    {"rows": [3]},
    {"rows": [{"model": "teacher"}]},
    {"rows": [{"model": None, "steps": 1, "FD-x": 1.0}]},
    {"rows": [{"model": "teacher", "steps": 0, "FD-x": 1.0}]},
    {"rows": [{"model": "teacher", "steps": "1", "FD-x": 1.0}]},
    {"rows": [{"model": "teacher", "steps": 1, "FD-x": [1.0]}]},
  ],
)
def test_an_evaluation_with_wrong_fields_is_refused(tmp_path, change):
  path = epath.Path(tmp_path) / FILE
  write_json(path, {**evaluation(), **change})
  with pytest.raises(
    ValueError, match="it has no metric, or rows without"
  ) as e:
    read_summary(path)
  assert "\n" not in str(e.value)


def test_an_unchanged_evaluation_is_not_written_again(keep, tmp_path):
  def changed():
    return {
      path: path.stat().st_mtime_ns
      for path in tmp_path.rglob("*")
      if path.is_file()
    }

  # No curves were drawn, so there is no picture to remove.
  first = keep(evaluation(), ())
  before = changed()
  assert keep(evaluation(), ()) == first
  assert changed() == before
  keep(evaluation(distance=0.4), ())
  after = changed()
  assert after.keys() == before.keys()
  assert all(after[path] != before[path] for path in after)


def test_one_row_is_called_a_row(keep):
  assert "(2000 images, 1 row)" in keep(evaluation(steps=(1,)))[0]
