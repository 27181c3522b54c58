"""Runs `python -m diffdistill`; handles signals before it imports the rest."""

import sys

from diffdistill.cli.commands import COMMANDS
from diffdistill.system import signals, started, streams


def main() -> int:
  """Runs one command; returns the exit status."""
  started.begin()
  streams.speak_utf8()
  streams.outlive_readers()
  command = COMMANDS.get(sys.argv[1] if len(sys.argv) > 1 else "")
  return signals.run(_run, command.again if command else "nothing was done")


def _run() -> int:
  from diffdistill.cli.main import main as run_command

  return streams.flushed(run_command())


if __name__ == "__main__":
  sys.exit(main())
