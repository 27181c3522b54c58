"""Sheets have titles and labels in words, at their images."""

import importlib.util

import numpy as np
import pytest

from diffdistill.evaluation.labelled import (
  Labels,
  labelled_rows,
  labelled_sheet,
)
from diffdistill.evaluation.titles import (
  class_titles,
  column_titles,
  row_titles,
  sheet_title,
)

SIDE, GAP = 48, 2


def black(count, size=8, channels=1):
  return -np.ones((count, size, size, channels), np.float32)


def ink(picture, top, bottom, left, right):
  """Whether there is text in a part of a picture that has no image."""
  part = picture[top:bottom, left:right]
  assert part.size
  return bool((part < 128).any())


def body(picture, rows, columns):
  """The place of the images: the top and the left of the first image."""
  dark = picture == 0
  # A whole row of an image is black, unlike any row of letters.
  long = SIDE * columns
  tops = np.flatnonzero(dark.sum(1) >= long)
  lefts = np.flatnonzero(dark.sum(0) >= SIDE * rows)
  return tops[0], lefts[0]


def test_labels_are_at_their_rows_columns_and_images():
  texts = Labels(
    title="title",
    rows=["one", "a longer name"],
    columns=["x", "y", "z"],
    images=["", "", "", "", "", "below"],
  )
  picture = np.asarray(labelled_sheet(black(6), texts, 3))
  top, left = body(picture, 2, 3)
  caption = picture.shape[0] - top - 2 * SIDE - 2 * GAP
  step = SIDE + GAP + caption // 2
  assert ink(picture, 0, top // 2, 0, left)
  for i in range(3):
    x = left + i * (SIDE + GAP)
    assert ink(picture, top // 2, top - GAP, x, x + SIDE)
  for i in range(2):
    assert ink(picture, top + i * step, top + i * step + SIDE, 0, left - GAP)
  # The longer name fills its margin without touching the images.
  assert not ink(picture, top, picture.shape[0], left - GAP - 3, left)
  below = picture.shape[0] - caption // 2
  assert ink(picture, below, picture.shape[0], left + 100, left + 148)
  assert not ink(picture, below, picture.shape[0], left, left + 98)


def test_a_sheet_without_labels_is_the_plain_grid():
  picture = labelled_sheet(black(4), Labels())
  assert picture.size == (2 * 50 + 2, 2 * 50 + 2)
  assert labelled_sheet(black(1, channels=3), Labels()).mode == "RGB"


@pytest.mark.parametrize("words", ["long " * 40, "x" * 300, "ü 猫 \n\t&"])
def test_a_text_of_any_length_keeps_the_images_in_their_places(words):
  many = (words,) * 4
  texts = Labels(title=words, rows=many[:2], columns=many[:2], images=many)
  picture = np.asarray(labelled_sheet(black(4), texts, 2))
  top, left = body(picture, 2, 2)
  assert left < 260
  assert top < 120
  assert picture.shape[1] < 700


def test_letters_grow_with_the_images():
  texts = Labels(title="title", columns=["x"])
  sizes = [labelled_sheet(black(1, size), texts).height - size - 4
           for size in (48, 256)]  # fmt: skip
  assert sizes[1] > 2 * sizes[0]


def test_letters_with_accents_are_drawn():
  def drawn(letter):
    return labelled_sheet(black(1), Labels(title=letter * 9)).tobytes()

  # A letter that the font lacks would be an empty box, like the last one.
  assert len({drawn(letter) for letter in "üéßñж\0"}) == 6


def test_sheets_have_text_without_matplotlib(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  picture = np.asarray(labelled_sheet(black(1), Labels(title="teacher")))
  assert ink(picture, 0, picture.shape[0] - 52, 0, 100)


def test_a_column_of_rows_is_one_noise():
  texts = Labels(columns=["noise 1", "noise 2"])
  rows = {"teacher, 2 steps": black(2), "student, 1 step": black(2)}
  picture = np.asarray(labelled_rows(rows, texts))
  top, left = body(picture, 2, 2)
  assert (top + 2 * 50, left + 2 * 50) == picture.shape
  with pytest.raises(ValueError, match="one shape"):
    labelled_rows({"a": black(3), "b": black(2)}, Labels())
  with pytest.raises(ValueError, match="one shape"):
    labelled_rows({}, Labels())


def test_titles_are_the_words_of_a_reader():
  run = [("teacher", 128), ("halve/004", 4), ("halve/001", 1)]
  assert row_titles(run) == [
    "teacher, 128 steps",
    "student, 4 steps",
    "student, 1 step",
  ]
  assert row_titles([*run, ("moments/004", 4)])[1:] == [
    "student of halve, 4 steps",
    "student of halve, 1 step",
    "student of moments, 4 steps",
  ]
  assert row_titles([("halve/001", 1), ("student", 1)]) == [
    "halve/001, 1 step",
    "student, 1 step",
  ]
  title = sheet_title("halve/004", 4, "seed 0")
  assert title == "student halve/004, 4 steps, seed 0"
  assert sheet_title("teacher", 1) == "teacher, 1 step"


def test_images_are_named_after_their_class_if_they_have_one():
  names = ("ant", "bee")
  assert class_titles(np.array([1, 0, 1]), names) == ("bee", "ant", "bee")
  assert class_titles(np.array([1, 7]), ()) == ("class 1", "class 7")
  assert class_titles(None, names) == ()
  assert column_titles([("ant", "bee"), ("ant", "bee")], 2) == ["ant", "bee"]
  # If the models draw other classes, only the noise is the same.
  assert column_titles([("ant", "bee"), ()], 2) == ["noise 1", "noise 2"]
