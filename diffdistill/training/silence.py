"""Drops log messages of Orbax about errors that Orbax raises as well."""

import functools
import logging
import sys
from pathlib import Path
from typing import Any


class _NotOfOrbax(logging.Filter):
  """A filter that drops the log records of Orbax: hints and tracebacks."""

  def filter(self, record: logging.LogRecord) -> bool:
    return "orbax" not in Path(record.pathname).parts


@functools.cache
def silence() -> None:
  """Drops these messages from now on, in the whole process.

  Orbax stops at the first array that it cannot read. Its reads of the other
  arrays then fail with "Event loop is closed". Python would print this message
  once for each array.
  """
  logging.getLogger("absl").addFilter(_NotOfOrbax())
  before = sys.unraisablehook

  def hook(late: Any) -> None:
    if "Event loop is closed" not in str(late.exc_value):
      before(late)

  sys.unraisablehook = hook
