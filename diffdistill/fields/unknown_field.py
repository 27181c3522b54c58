"""Refuses an unknown field, and names the known one that is closest to it."""

import difflib
from collections.abc import Collection

from diffdistill.fields import Fields, join
from diffdistill.ranges import SHOWN, brief


def refuse_unknown(path: str, fields: Fields, known: Collection[str]) -> None:
  """Refuses a section with a field that is not known.

  Args:
    path: the path of the section.
    fields: the fields of the section.
    known: the names of all fields that the section may have.

  Raises:
    ValueError: if a field is unknown; the message names the first such field.
  """
  for name in fields:
    if name in known:
      continue
    shown = name if len(name) <= SHOWN and name.isprintable() else brief(name)
    close = difflib.get_close_matches(name, known, n=1)
    remedy = (
      f"did you mean {close[0]}?"
      if close
      else f"remove it, or pass one of {', '.join(sorted(known))}"
    )
    raise ValueError(f"{join(path, shown)} is no field; {remedy}")
