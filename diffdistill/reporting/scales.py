"""Where a number lies on an axis, and how numbers are written."""

import dataclasses
import math
from collections.abc import Sequence

Number = int | float
# From which ratio of the largest to the smallest an axis is logarithmic.
DECADES = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
  """The way from values to a share of an axis' length.

  Args:
    low, high: the values at its ends.
    log: whether it is logarithmic.
    ticks: values that are named.
  """

  low: Number
  high: Number
  log: bool
  ticks: tuple[Number, ...]

  def __call__(self, value: Number) -> Number:
    """0 at the low end, 1 at the high one."""
    if self.log:
      return math.log(value / self.low) / math.log(self.high / self.low)
    return (value - self.low) / (self.high - self.low)


def axis(values: Sequence[Number], log: bool | None = None) -> Axis:
  """An axis that holds all values, with two to six round ticks.

  Args:
    values: finite; positive for a logarithmic axis.
    log: whether to make it logarithmic; by default where they are positive and
      span DECADES.
  """
  low, high = min(values), max(values)
  if log is None:
    log = low > 0 and high / low >= DECADES
  if log:
    return _logarithmic(low, high)
  return _linear(low, high)


def over(values: Sequence[Number]) -> Axis:
  """A logarithmic axis whose ticks are the values themselves, such as steps."""
  low, high = min(values), max(values)
  margin = max((high / low) ** 0.04, 1.2 if low == high else 1.0)
  return Axis(
    low=low / margin, high=high * margin, log=True, ticks=tuple(sorted(values))
  )


def along(length: Number) -> Axis:
  """A linear axis from 0 to a length, such as that of a training."""
  made = _linear(0.0, length)
  ticks = tuple(tick for tick in made.ticks if 0 <= tick <= length)
  return Axis(low=0.0, high=length, log=False, ticks=ticks)


def _linear(low: Number, high: Number) -> Axis:
  if low == high:
    room = abs(low) or 1.0
    low, high = low - room / 2, high + room / 2
  span = high - low
  power = 10.0 ** math.floor(math.log10(span / 5))
  step = next(m * power for m in (1, 2, 5, 10) if m * power >= span / 5)
  first, last = math.floor(low / step), math.ceil(high / step)
  ticks = tuple(round(i * step, 12) for i in range(first, last + 1))
  return Axis(low=first * step, high=last * step, log=False, ticks=ticks)


def _logarithmic(low: Number, high: Number) -> Axis:
  room = max((high / low) ** 0.05, 1.05)
  low, high = low / room, high * room
  decades = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
  between = (1, 2, 5) if len(decades) < 3 else (1,)
  powers = range(decades.start - 1, decades.stop + 1)
  ticks = [m * 10.0**p for p in powers for m in between]
  ticks = [tick for tick in ticks if low <= tick <= high]
  every = math.ceil(len(ticks) / 5)
  return Axis(low=low, high=high, log=True, ticks=tuple(ticks[::every]))


def short(value: Number) -> str:
  """A number for a tick: 20k, 0.05, 1e-5."""
  size = abs(value)
  if size >= 1e5 or 0 < size < 1e-3:
    mantissa, exponent = f"{value:.3e}".split("e")
    if size >= 1e9 or size < 1e-3:
      return f"{float(mantissa):g}e{int(exponent)}"
  for unit, name in ((1e6, "M"), (1e3, "k")):
    if size >= unit:
      return f"{value / unit:g}{name}"
  return f"{value:g}"


def number(value: Number) -> str:
  """A number for a table: 12,800, 0.1739, 2.5e-04."""
  if not math.isfinite(value):
    return str(value)
  if isinstance(value, int) or abs(value) >= 1e3:
    return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.3e}"
  return f"{value:.4g}"


def of_unit(value: Number, units: Sequence[str], base: Number) -> str:
  """A number with the largest unit that it is one of: 6.3 TFLOP."""
  index = 0
  while abs(value) >= base and index < len(units) - 1:
    value, index = value / base, index + 1
  return f"{value:.3g} {units[index]}"


def flops(value: Number) -> str:
  return of_unit(
    value,
    ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP"),
    1000.0,
  )


def size(value: Number) -> str:
  return of_unit(value, ("B", "KiB", "MiB", "GiB", "TiB"), 1024.0)
