"""The command line: runs one command and returns its exit status.

0 done; 1 refused and 2 bad usage, each in one line; 75 after SIGTERM or SIGHUP,
and 130 after an interrupt (train saves first where an update ends within
seconds): the same command goes on; 70 where the command hung, or where one of
several processes failed or was lost: start all again.
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
