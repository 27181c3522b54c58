"""The command line: runs one command and returns its exit status.

usage.py lists the exit statuses. Before train exits with 75 or 130, it saves if
the current update ends within seconds.
"""

import pkgutil
import sys
from collections.abc import Mapping
from typing import Any

from diffdistill.cli import processes, usage
from diffdistill.system.refusals import UsageError, is_refusal


def main() -> int:
  """Runs the command that sys.argv names; returns its exit status."""
  try:
    text = usage.answer(sys.argv[1:])
    if text is not None:
      print(text)
      return 0
    name, *words = sys.argv[1:]
    command = usage.find(name, words)
    # Imported here, so that the help does not load the libraries for flags.
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
    arguments = reading.arguments(command, values)
    if command.computes:
      _keep_compilations(name, values.get("multihost"), arguments)
    pkgutil.resolve_name(command.function)(**arguments)
  except KeyboardInterrupt:
    return processes.refuse(f"interrupted; {command.again}", 130)
  except Exception as error:
    if is_refusal(error):
      return processes.refuse(error, getattr(error, "status", 1))
    if not processes.joined():
      raise
    processes.fail()
  return 0


def _keep_compilations(
  name: str, multihost: bool | None, arguments: Mapping[str, Any]
) -> None:
  """Keeps what is compiled where the next start of the command finds it."""
  from diffdistill.run import compilations
  from diffdistill.system.files import in_bucket

  workdir: Any = arguments.get("workdir")
  moves = multihost or (name == "train" and in_bucket(workdir))
  compilations.keep(workdir if moves else None)
