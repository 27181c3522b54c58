"""The command line: runs one command and returns its exit status.

usage.py lists the statuses. After 75 and 130, train has saved if an update ends
within seconds.
"""

import pkgutil
import sys

from diffdistill.cli import processes, usage
from diffdistill.system.refusals import UsageError, is_refusal


def main() -> int:
  """Runs one command; returns the exit status."""
  try:
    text = usage.answer(sys.argv[1:])
    if text is not None:
      print(text)
      return 0
    name, *words = sys.argv[1:]
    command = usage.find(name)
    # The help does not wait for the libraries that read flags.
    from diffdistill.cli import reading

    values = reading.read(name, words)
  except UsageError as error:
    return processes.refuse(error, error.status)
  try:
    if command.computes:
      from diffdistill.run import environment

      environment.pin()
    if "multihost" in values:
      processes.join(name, command, values)
    function = pkgutil.resolve_name(command.function)
    function(**reading.arguments(command, values))
  except KeyboardInterrupt:
    return processes.refuse(f"interrupted; {command.again}", 130)
  except Exception as error:
    if is_refusal(error):
      return processes.refuse(error, getattr(error, "status", 1))
    if not processes.joined():
      raise
    processes.fail()
  return 0
