"""Declares the range of a number at its field, and checks it.

  learning_rate: Annotated[float, Range(0, 10)]
  num_steps: tuple[Annotated[int, Range(1, 10**5)], ...]

`check_ranges` refuses a number outside its range. A test checks that every
number that a config can set has a range.
"""

import dataclasses
import functools
import math
import numbers
import operator
import struct
import typing
from typing import Annotated, Any, Literal

# A message shows at most this many characters of a value.
SHOWN = 60
# The smallest normal number of float32.
SMALLEST_NORMAL = 2.0**-126


@dataclasses.dataclass(frozen=True)
class Range:
  """The numbers from `least` to `most`.

  The program converts a number that is not whole to float32. So its float32
  value must be in the range too, and only 0 itself may become 0.

  Args:
    least, most: the ends of the range.
    excluded: the ends that are not in the range.
  """

  least: int | float
  most: int | float
  excluded: Literal["", "least", "most", "both"] = ""

  def refusal(self, value: int | float) -> str:
    """A text with the allowed numbers; empty if the value is allowed."""
    below = value < self.least or (
      value == self.least and self.excluded in ("least", "both")
    )
    if below or not self._holds(value):
      return f"pass {self._words(below)}"
    if isinstance(value, int):
      return ""
    single = _in_float32(value)
    if (
      (single == 0) != (value == 0)
      or math.isinf(single) != math.isinf(value)
      or (single == self.most and not self._holds(single))
    ):
      return (
        f"it is {single:g} in float32, the computer's number; pass"
        f" {self._words(below=False)}"
      )
    return ""

  def _holds(self, value: int | float) -> bool:
    """Whether a number is in the range; NaN is in no range."""
    if not self.least <= value <= self.most:
      return False
    if value == self.least and self.excluded in ("least", "both"):
      return False
    return not (value == self.most and self.excluded in ("most", "both"))

  def _words(self, below: bool) -> str:
    least, most = (_number(end) for end in (self.least, self.most))
    if self.most <= 1:
      left = "(" if self.excluded in ("least", "both") else "["
      right = ")" if self.excluded in ("most", "both") else "]"
      return f"a value in {left}{least}, {most}{right}"
    open_ = self.excluded in ("least", "both")
    words = f"more than {least}" if open_ else f"{least} or more"
    return words if below else f"{words}, at most {most}"


# Ranges that several packages use.
BATCH_SIZE = Range(1, 2**20)
BatchSize = Annotated[int, BATCH_SIZE]
Images = Annotated[int, Range(20, 10**7)]
Minutes = Annotated[float, Range(0, 10**6)]
Share = Annotated[float, Range(0, 1, "most")]
Side = Annotated[int, Range(1, 2**14)]
STEPS = Range(1, 10**5)
Steps = Annotated[int, STEPS]
Updates = Annotated[int, Range(1, 10**9)]
# The range of a step of a round, counted from 0.
STEP = Range(0, 10**15)
SEED = Range(0, 2**32 - 1)
Seed = Annotated[int, SEED]
# Ranges of what `sample` draws; `evaluate` draws as many images at most.
SAMPLES = Range(1, 10**7)
LABEL = Range(0, 10**6)
GUIDANCE = Range(0, 1000)
IN_A_ROW = Range(2, 1000)
# Ranges of the fields of networks.
Channels = Annotated[int, Range(1, 2**16)]
# The number of channels of a sinusoid, which must also be even.
Waves = Annotated[int, Range(4, 2**16)]
Classes = Annotated[int, Range(0, 10**6)]
SomeClasses = Annotated[int, Range(1, 10**6)]
Depth = Annotated[int, Range(1, 1000)]
Blocks = Annotated[int, Range(1, 128)]
Multiplier = Annotated[int, Range(1, 1024)]


def check_ranges(owner: Any, prefix: str = "") -> None:
  """Refuses an object with a number outside the range of its field.

  Args:
    owner: an object of a dataclass.
    prefix: a text before the field's name in the message.

  Raises:
    ValueError: if a number is outside its range.
  """
  for name in ranged(type(owner)):
    check_range(f"{prefix}{name}", type(owner), name, getattr(owner, name))


def check_range(path: str, cls: type, name: str, value: Any) -> None:
  """Refuses a value outside the range of a field.

  Args:
    path: the path of the field, for the message.
    cls: the dataclass.
    name: the name of the field.
    value: the value of the field.

  Raises:
    ValueError: if the value is outside the range.
  """
  hint = ranged(cls).get(name)
  refusal = hint and _refusal(hint, value)
  if refusal:
    raise ValueError(f"{path} is {brief(value)}; {refusal}")


def check_number(name: str, value: int | float, allowed: Range) -> None:
  """Refuses an argument of a function that is outside a range.

  Args:
    name: the name of the argument, for the message.
    value: the value of the argument.
    allowed: the range.

  Raises:
    ValueError: if the value is outside the range.
  """
  refusal = allowed.refusal(value)
  if refusal:
    raise ValueError(f"{name} is {brief(value)}; {refusal}")


def whole_number(name: str, value: Any, allowed: Range) -> int:
  """Returns an argument of a function as an int.

  Args:
    name: the name of the argument, for the message.
    value: the value of the argument; it may be an integer of numpy.
    allowed: the range.

  Raises:
    ValueError: if the value is no whole number, or outside the range.
  """
  try:
    number = operator.index(value)
  except TypeError as error:
    raise ValueError(
      f"{name} is {brief(value)}; pass a whole number"
    ) from error
  check_number(name, number, allowed)
  return number


@functools.cache
def ranged(cls: type) -> dict[str, Any]:
  """The type hints of those fields of a dataclass that declare a range."""
  hints = typing.get_type_hints(cls, include_extras=True)
  return {name: hint for name, hint in hints.items() if _declares(hint)}


def brief(value: Any) -> str:
  """A value as a message shows it: on one line, and shortened if it is long."""
  if isinstance(value, int) and abs(value) >= 10**SHOWN:
    return "a whole number of more than 60 digits"
  text = repr(value)
  return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _declares(hint: Any) -> bool:
  if isinstance(hint, Range):
    return True
  if typing.get_origin(hint) is Annotated:
    return any(map(_declares, hint.__metadata__))
  return any(map(_declares, typing.get_args(hint)))


def _refusal(hint: Any, value: Any) -> str:
  """The refusal of a value by the ranges in a hint; empty if all allow it."""
  if isinstance(value, tuple):
    # The hint is of a tuple: tuple[Annotated[int, Range(...)], ...].
    inner = next(filter(_declares, typing.get_args(hint)), None)
    said = next(filter(None, (_refusal(inner, item) for item in value)), "")
    return f"{said} for each" if said else ""
  if typing.get_origin(hint) is not Annotated:
    # The hint is a union, such as `Share | None`.
    choices = typing.get_args(hint)
    return next(filter(None, (_refusal(h, value) for h in choices)), "")
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    return ""
  value = int(value) if isinstance(value, numbers.Integral) else float(value)
  ranges = (item for item in hint.__metadata__ if isinstance(item, Range))
  return next(filter(None, (item.refusal(value) for item in ranges)), "")


def _in_float32(value: float) -> float:
  try:
    (single,) = struct.unpack("f", struct.pack("f", value))
  except OverflowError:
    single = math.copysign(math.inf, value)
  # Accelerators use 0 for a number below the smallest normal one.
  return 0.0 if abs(single) < SMALLEST_NORMAL else single


def _number(value: int | float) -> str:
  if isinstance(value, int) or not math.isfinite(value):
    return str(value)
  return f"{value:g}"
