"""When the command of this process began: before its libraries are imported."""

import time

_moment: float | None = None


def begin() -> None:
  """Notes that a command begins now."""
  global _moment
  _moment = time.monotonic()


def began() -> float | None:
  """The time.monotonic of the last `begin`; None if there was none."""
  return _moment
