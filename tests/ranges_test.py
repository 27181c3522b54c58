"""Tests that each number of a config declares its range and is checked."""

import dataclasses
import math
import typing
from typing import Annotated

import numpy as np
import pytest

from diffdistill.data import SOURCES
from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.neighbours import NEIGHBOURS
from diffdistill.diffusion.timesteps import DRAWS
from diffdistill.evaluation.settings import Settings
from diffdistill.fields.builder import Builder
from diffdistill.networks import CLASSIFIERS, NETWORKS
from diffdistill.networks.classifier import LinenClassifier
from diffdistill.objectives import OBJECTIVES
from diffdistill.ranges import (
  Range,
  brief,
  check_ranges,
  ranged,
  whole_number,
)
from diffdistill.run import sections
from diffdistill.sampling import SAMPLERS
from diffdistill.training.cadence import Cadence
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.selection_by_score import Selection

CLASSES = (
  *SOURCES.values(),
  *NETWORKS.values(),
  *CLASSIFIERS.values(),
  *OBJECTIVES.values(),
  *SAMPLERS.values(),
  *DRAWS.values(),
  *NEIGHBOURS.values(),
  *sections.SCHEDULES.values(),
  *sections.PRECONDITIONS.values(),
  *sections.STAGES.values(),
  Cadence,
  Guidance,
  LinenClassifier,
  Optimizer,
  Selection,
  Settings,
  sections.Config,
  sections.DataSection,
  sections.MeshSection,
  sections.ModelSection,
  sections.ShiftSection,
)

BUILDER = Builder(kinds={})
# These numbers have no range, because code gives them, never a config.
GIVEN = {("LinenClassifier", "image_shape")}


def is_number(hint):
  if typing.get_args(hint):
    return any(map(is_number, typing.get_args(hint)))
  return hint in (int, float)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_number_of_a_config_declares_its_range(cls):
  hints = typing.get_type_hints(cls)
  numbers = {
    field.name
    for field in dataclasses.fields(cls)
    if field.init
    and is_number(hints[field.name])
    and (cls.__name__, field.name) not in GIVEN
  }
  assert numbers == set(ranged(cls)) - {"kind"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
  count: Annotated[int, Range(1, 100)] = 1
  share: Annotated[float, Range(0, 1, "most")] = 0.5
  scale: Annotated[float, Range(0, 10**6, "least")] = 1.0
  sides: tuple[Annotated[int, Range(1, 100)], ...] = ()
  width: Annotated[int, Range(4, 8)] | None = None
  end: Annotated[float, Range(0, math.inf)] = math.inf


OUTSIDE = [
  ("count", 0, "count is 0; pass 1 or more"),
  ("count", 101, "count is 101; pass 1 or more, at most 100"),
  ("count", 10**400, "count is a whole number of more than 60 digits; pass 1"),
  ("share", 1.0, "share is 1.0; pass a value in [0, 1)"),
  ("share", -0.1, "share is -0.1; pass a value in [0, 1)"),
  ("share", math.nan, "share is nan; pass a value in [0, 1)"),
  # This number is below 1, but float32 rounds it to 1.
  ("share", 1 - 1e-12, "it is 1 in float32, the computer's number; pass a val"),
  ("scale", 0.0, "scale is 0.0; pass more than 0"),
  ("scale", 1e-300, "scale is 1e-300; it is 0 in float32"),
  ("scale", math.inf, "scale is inf; pass more than 0, at most 1000000"),
  ("scale", math.nan, "scale is nan; pass more than 0, at most 1000000"),
  ("scale", 10**400, "digits; pass more than 0, at most 1000000"),
  ("sides", (1, 0), "sides is (1, 0); pass 1 or more for each"),
  ("width", 3, "width is 3; pass 4 or more"),
  ("end", 1e300, "end is 1e+300; it is inf in float32"),
]


@pytest.mark.parametrize(("field", "value", "message"), OUTSIDE)
def test_a_number_out_of_range_is_refused_in_one_line(field, value, message):
  with pytest.raises(ValueError, match=r"^part\.") as error:
    BUILDER.make("part", Example, {field: value})
  assert message in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("count", 100),
    ("share", 0.0),
    ("share", 0.999),
    ("scale", 1e6),
    ("sides", (1, 100)),
    ("width", None),
    ("width", 8),
    ("end", math.inf),
  ],
)
def test_a_number_in_range_is_accepted(field, value):
  made = BUILDER.make("part", Example, {field: value})
  assert getattr(made, field) == value
  check_ranges(made)


def test_a_whole_number_for_a_float_becomes_one():
  made = BUILDER.make("part", Example, {"scale": 2})
  assert isinstance(made.scale, float)


@pytest.mark.parametrize("text", ["a\nb", "a\x00b", "a" * 5000])
def test_text_that_cannot_be_a_name_or_path_is_refused_in_one_line(text):
  with pytest.raises(ValueError, match=r"^p\.path is 'a") as error:
    BUILDER.make("p", SOURCES["npz"], {"path": text, "split": "train"})
  assert "\n" not in str(error.value)
  assert len(str(error.value)) < 200


def test_a_long_value_is_shown_in_part():
  assert brief("x" * 1000).endswith("x...")
  assert brief(10**5000) == "a whole number of more than 60 digits"
  assert brief((1, 2)) == "(1, 2)"


def test_an_argument_may_be_any_kind_of_whole_number():
  for value in (3, np.int64(3), np.uint8(3)):
    number = whole_number("seed", value, Range(0, 5))
    assert type(number) is int
    assert number == 3


@pytest.mark.parametrize(
  ("value", "remedy"),
  [
    (1.7, "a whole number"),
    (2.0, "a whole number"),
    ("1", "a whole number"),
    (None, "a whole number"),
    (-1, "0 or more"),
    (6, "0 or more, at most 5"),
  ],
)
def test_other_values_than_whole_numbers_in_range_are_refused(value, remedy):
  with pytest.raises(ValueError, match=f"^seed is {value!r}; pass {remedy}$"):
    whole_number("seed", value, Range(0, 5))
