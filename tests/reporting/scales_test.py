"""Axes hold their values; numbers are written as a reader would."""

import math

import pytest

from diffdistill.reporting.scales import (
  along,
  axis,
  flops,
  number,
  over,
  short,
  size,
)


@pytest.mark.parametrize(
  "values",
  [
    [0.0, 1.0],
    [-0.3, 17.0],
    [5.0],
    [0.0],
    [1e-7, 2.0],
    [3.0, 4.0],
    [0.25, 0.2501],
    [1.0, 1e9],
    [1e-12, 1e-11],
  ],
)
def test_an_axis_holds_its_values_and_has_a_few_ticks(values):
  made = axis(values)
  for value in (*values, *made.ticks):
    assert -1e-9 <= made(value) <= 1 + 1e-9
  assert made(made.low) == 0
  assert made(made.high) == pytest.approx(1)
  assert 2 <= len(made.ticks) <= 7
  assert list(made.ticks) == sorted(set(made.ticks))


def test_an_axis_is_logarithmic_where_values_span_decades():
  assert axis([0.01, 1.0]).log
  assert not axis([0.1, 1.0]).log
  assert not axis([-1.0, 1.0]).log
  assert axis([0.1, 1.0], log=True).log
  # A ratio is a distance.
  made = axis([0.01, 1.0])
  assert made(0.1) - made(0.01) == pytest.approx(made(1.0) - made(0.1))


def test_ticks_are_the_steps_themselves():
  assert over([1, 2, 128]).ticks == (1, 2, 128)
  alone = over([4])
  assert alone(4) == pytest.approx(0.5)
  made = along(1750)
  assert made.low == 0
  assert made.high == 1750
  assert made.ticks == (0, 500, 1000, 1500)


@pytest.mark.parametrize(
  ("value", "text"),
  [
    (0, "0"),
    (0.05, "0.05"),
    (1e-5, "1e-5"),
    (20000, "20k"),
    (1500, "1.5k"),
    (2e6, "2M"),
    (3e12, "3e12"),
    (-0.5, "-0.5"),
  ],
)
def test_a_tick_is_short(value, text):
  assert short(value) == text


@pytest.mark.parametrize(
  ("value", "text"),
  [
    (12800, "12,800"),
    (0.17388, "0.1739"),
    (12345.6, "12,346"),
    (0.0, "0"),
    (7, "7"),
    (math.inf, "inf"),
    (3.2e18, "3.200e+18"),
  ],
)
def test_a_number_of_a_table(value, text):
  assert number(value) == text


def test_units():
  assert flops(6.3e12) == "6.3 TFLOP"
  assert flops(999) == "999 FLOP"
  assert size(3 * 2**30 / 2) == "1.5 GiB"
  assert size(2.0**60) == "1.05e+06 TiB"
