"""The words for models and classes in pictures."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

# The title of a sheet with a row for each model.
SAME_NOISE = "The images of a column begin with the same noise."


def in_steps(count: int) -> str:
  """A number of steps in words, such as "1 step" and "4 steps"."""
  return f"{count} step{'' if count == 1 else 's'}"


def row_titles(models: Sequence[tuple[str, int]]) -> list[str]:
  """A title for each model, such as "student, 4 steps".

  If students of several stages are among the models, a title names the stage
  too: "student of moments, 4 steps".

  Args:
    models: the name of each model, such as "teacher" or "halve/004", and its
      number of steps.
  """
  stages = {name.split("/")[0] for name, _ in models if "/" in name}
  titles = []
  for name, steps in models:
    who = name
    if "/" in name:
      stage = name.split("/")[0]
      who = "student" if len(stages) == 1 else f"student of {stage}"
    titles.append(f"{who}, {in_steps(steps)}")
  if len(set(titles)) < len(titles):
    # An exported model may have any name, such as "student".
    return [f"{name}, {in_steps(steps)}" for name, steps in models]
  return titles


def sheet_title(model: str, steps: int, *facts: str) -> str:
  """The title of the sheet of one model: "student halve/004, 4 steps, ..."."""
  who = f"student {model}" if "/" in model else model
  return ", ".join((who, in_steps(steps), *facts))


def class_titles(
  labels: Int[np.ndarray, " n"] | None, names: Sequence[str]
) -> tuple[str, ...]:
  """The class of each image in words: its name, or "class 3" without names.

  Args:
    labels: the label of each image; None if the images have no classes.
    names: the names of the classes; empty if they have only numbers.
  """
  if labels is None:
    return ()
  return tuple(
    names[label] if label < len(names) else f"class {label}" for label in labels
  )


def column_titles(classes: Sequence[Sequence[str]], count: int) -> list[str]:
  """The title of each column of a sheet whose rows are models.

  All images of a column begin with the same noise. If all models also draw the
  same class, the title is the class; otherwise it is "noise 3".

  Args:
    classes: for each model the class of each image, or nothing.
    count: the number of columns.
  """
  different = {tuple(each) for each in classes}
  same = different.pop() if len(different) == 1 else ()
  return [same[i] if i < len(same) else f"noise {i + 1}" for i in range(count)]
