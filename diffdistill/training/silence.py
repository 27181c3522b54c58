"""What Orbax prints of an error that it raises as well, and that we say."""

import functools
import logging
import sys
from pathlib import Path
from typing import Any


class _NotOfOrbax(logging.Filter):
  """Drops what Orbax logs: tracebacks of what it raises, and hints."""

  def filter(self, record: logging.LogRecord) -> bool:
    return "orbax" not in Path(record.pathname).parts


@functools.cache
def silence() -> None:
  """Drops it, from now on.

  After a read that failed there is more: Orbax gives up at the first array
  that cannot be read, and the reads of the others then find nobody to report
  to. Python prints that for each of them.
  """
  logging.getLogger("absl").addFilter(_NotOfOrbax())
  before = sys.unraisablehook

  def hook(late: Any) -> None:
    if "Event loop is closed" not in str(late.exc_value):
      before(late)

  sys.unraisablehook = hook
