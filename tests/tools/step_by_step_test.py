"""A picture has the steps of a student beside those of its teacher."""

import io

import numpy as np
import pytest
from etils import epath
from PIL import Image

import diffdistill
from diffdistill.tools import step_by_step as steps
from diffdistill.tools.drawing import RunArtist
from diffdistill.tools.drawn import Wish


@pytest.fixture(scope="module")
def artist(finished_run):
  return RunArtist(epath.Path(finished_run))


def test_the_last_column_is_the_sampled_image_bit_for_bit(artist):
  wish = Wish(num_images=3, seed=2)
  shown = steps.step_by_step(artist, "halve/001", wish)
  student = artist.draw("halve/001", wish)
  teacher = artist.draw("teacher", wish)
  assert teacher.num_steps == 2
  # Each noise has two rows; each row has the one step and then the result.
  assert shown.images.shape == (3, 2, 2, *student.images.shape[1:])
  np.testing.assert_array_equal(shown.images[:, 1, -1], student.images)
  np.testing.assert_array_equal(shown.images[:, 0, -1], teacher.images)
  # The student's only prediction is its result.
  np.testing.assert_array_equal(shown.images[:, 1, 0], student.images)
  # The teacher's first prediction is its image in one step of DDIM.
  one = artist.draw("teacher", Wish(num_images=3, seed=2, num_steps=1))
  np.testing.assert_array_equal(shown.images[:, 0, 0], one.images)
  assert (shown.images[:, 0, 0] != shown.images[:, 0, 1]).any()
  assert (list(shown.numbers), list(shown.times)) == ([1], [1.0])


def test_a_student_in_more_steps_is_shown_at_some_of_them(artist, monkeypatch):
  monkeypatch.setattr(steps, "MOST_STEPS", 3)
  shown = steps.step_by_step(
    artist, "halve/001", Wish(num_images=1, num_steps=9)
  )
  assert list(shown.numbers) == [1, 5, 9]
  np.testing.assert_allclose(shown.times, [1, 5 / 9, 1 / 9], rtol=1e-6)
  assert shown.images.shape[:3] == (1, 2, 4)
  # The teacher's two steps begin at t = 1 and t = 0.5; the nearest are shown.
  np.testing.assert_array_equal(shown.images[0, 0, 1], shown.images[0, 0, 2])
  np.testing.assert_array_equal(shown.images[0, 0, 2], shown.images[0, 0, 3])


def test_the_picture_says_what_its_rows_and_columns_are(artist, monkeypatch):
  labels, draw = [], steps.labelled_sheet

  def spy(images, texts, columns):
    labels.append(texts)
    return draw(images, texts, columns)

  monkeypatch.setattr(steps, "labelled_sheet", spy)
  shown = steps.step_by_step(artist, None, Wish(num_images=2, label=1))
  shown.sheet()
  (texts,) = labels
  assert (
    texts.rows
    == [
      "teacher, 2 steps, class 1",
      "student, 1 step, class 1",
    ]
    * 2
  )
  assert texts.columns == ["step 1, t=1.00", "result"]
  assert "Seed 0" in texts.title
  with Image.open(io.BytesIO(shown.sheet(plain=True).png)) as plain:
    assert plain.size == (2 * 50 + 2, 4 * 50 + 2)


def test_the_command_writes_the_picture_of_the_api(
  finished_run, tmp_path, run_cli, capsys
):
  out = tmp_path / "steps.png"
  flags = ("sample", f"--workdir={finished_run}", "--show_steps")
  assert run_cli(*flags, "--num_images=2", f"--out={out}") == 0
  said = capsys.readouterr().out
  assert said.startswith("the steps of halve/001 beside those of teacher: ")
  run = diffdistill.open(finished_run)
  assert out.read_bytes() == run.steps(num_images=2).png


@pytest.mark.parametrize(
  ("flags", "line"),
  [
    (["--guidance=1"], "guidance is 1.0, which has no effect with show_steps"),
    (["--interpolate=3"], "interpolate is 3, which has no effect with show_st"),
    (["--out=a.npz"], "show_steps is set, but an .npz holds the images alone"),
    (["--round=teacher"], "teacher has no teacher in this run, so its steps"),
  ],
)
def test_a_wish_that_has_no_effect_is_refused(
  finished_run, refuse, flags, line
):
  common = ("sample", f"--workdir={finished_run}", "--show_steps")
  assert refuse(1, *common, *flags).startswith(line)
