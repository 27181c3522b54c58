"""Lines for the user, printed by the first process alone."""

import sys

from diffdistill.system import hosts


def say(message: str) -> None:
  """Prints a line on what goes on, to the standard error."""
  if hosts.is_first():
    print(message, file=sys.stderr, flush=True)


def answer(message: str) -> None:
  """Prints a line of what the command was asked for."""
  if hosts.is_first():
    print(message)
