"""Speeds have a spread, and only the digits that the spread allows."""

import pytest

from diffdistill.evaluation.shown import Table
from diffdistill.evaluation.speeds import (
  ratio,
  readable,
  rounded,
  shown,
  speeds,
)


@pytest.mark.parametrize(
  ("values", "text"),
  [
    ((412.3, 380.1, 440.2), "410 (380 to 440)"),
    ((43.4, 35.2, 52.1), "43 (35 to 52)"),
    ((102.73, 95.2, 110.4), "103 (95 to 110)"),
    ((4.03, 3.9, 4.15), "4.0 (3.9 to 4.2)"),
    ((12_345.6, 11_000.0, 13_900.0), "12,000 (11,000 to 14,000)"),
    ((0.0123, 0.0119, 0.0128), "0.0123 (0.0119 to 0.0128)"),
    # A value has at most three digits, and at least one.
    ((12_345.6, 12_345.5, 12_345.7), "12,300"),
    ((2.0, 2.0, 2.0), "2.00"),
    ((196.0, 100.0, 4000.0), "200 (100 to 4,000)"),
    ((0.0, 0.0, 0.0), "0"),
  ],
)
def test_a_value_has_the_digits_of_its_spread(values, text):
  assert shown(*values) == text


def test_a_speed_is_the_median_of_its_timings():
  made = speeds("x", 100, [1.0, 4.0, 2.0])
  assert made == {"x": 50, "x_least": 25, "x_most": 100}


def test_a_ratio_has_the_widest_spread():
  one = speeds("images_per_second", 8, [1.0, 2.0, 4.0])
  other = speeds("images_per_second", 8, [8.0, 16.0, 20.0])
  made = ratio("speed_up", one, other)
  assert made["speed_up"] == 8
  assert made["speed_up_least"] == 2
  assert made["speed_up_most"] == 20


def test_only_numbers_with_a_spread_are_rounded():
  fields = {"x": 412.3, "x_least": 380.1, "x_most": 440.2, "y": 412.3456}
  assert rounded(fields) == {"x": 410, "x_least": 380, "x_most": 440} | {
    "y": 412.3456
  }
  damaged = {"x": 412.3, "x_least": None, "x_most": "440"}
  assert rounded(damaged) == damaged


def test_a_table_shows_the_spread_in_one_column():
  row = {"model": "a", "images_per_second": 412.3}
  row |= {"images_per_second_least": 380.1, "images_per_second_most": 440.2}
  row |= {"timed_batches": 3, "timed_batch_size": 500}
  assert readable(row) == {
    "model": "a",
    "images_per_second": "410 (380 to 440)",
  }
  assert repr(Table([row, {"model": "b"}])).splitlines() == [
    "model  images_per_second",
    "-----  -----------------",
    "a       410 (380 to 440)",
    "b                      -",
  ]
