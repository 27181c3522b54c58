"""Formats numbers and names for a page."""

import math
import re
from collections.abc import Sequence

from markupsafe import Markup, escape

from diffdistill.evaluation.curves import Number


def number(value: Number) -> str:
  """A number for a table: 12,800, 0.1739, 2.5e-04."""
  if not math.isfinite(value):
    return str(value)
  if isinstance(value, int) or abs(value) >= 1e3:
    return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.3e}"
  return f"{value:.4g}"


def cell(value: object) -> str:
  """The text of a table's cell; a dash for an unknown value."""
  if value is None:
    return "-"
  if isinstance(value, int | float) and not isinstance(value, bool):
    return number(value)
  return str(value)


def breakable(name: str) -> Markup:
  """A name in which a line may break after a slash, dot or underscore."""
  parts = re.split(r"(?<=[/._])(?!$)", name)
  return Markup("<wbr />").join(escape(part) for part in parts)


def strong(text: str) -> Markup:
  return Markup("<strong>{}</strong>").format(text)


def flops(value: Number) -> str:
  units = ("FLOP", *(f"{letter}FLOP" for letter in "kMGTPEZ"))
  return _of_unit(value, units, 1000.0)


def size(value: Number) -> str:
  return _of_unit(value, ("B", "KiB", "MiB", "GiB", "TiB"), 1024.0)


def _of_unit(value: Number, units: Sequence[str], base: Number) -> str:
  """A number in the largest unit that keeps it above 1, such as 6.3 TFLOP."""
  index = 0
  while abs(value) >= base and index < len(units) - 1:
    value, index = value / base, index + 1
  return f"{value:.3g} {units[index]}"
