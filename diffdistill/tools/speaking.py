"""Prints lines for the user; of several processes, only the first prints."""

import sys

from diffdistill.system import hosts


def say(message: str) -> None:
  """Prints a line about the progress of a command, on the standard error."""
  if hosts.is_first():
    print(message, file=sys.stderr, flush=True)


def answer(message: str) -> None:
  """Prints a line of a command's result, on the standard output."""
  if hosts.is_first():
    print(message)
