"""python -m diffdistill: the command line, which listens for signals first."""

import sys

from diffdistill import usage
from diffdistill.system import signals, streams

REMEDIES = {
  "train": "the same command goes on from the newest checkpoint",
  "evaluate": (
    "the rows that are done are kept, and the same command goes on from there"
  ),
  "run": "the same command goes on",
}


def main() -> int:
  """Runs one command; returns the exit status."""
  streams.speak_utf8()
  streams.outlive_readers()
  command = sys.argv[1] if len(sys.argv) > 1 else ""
  return signals.run(
    _command, REMEDIES.get(command, "the same command starts over")
  )


def _command() -> int:
  text = usage.answer(sys.argv[1:])
  if text is not None:
    print(text)
    return streams.flushed(0)
  if sys.argv[1:] == ["list"]:
    from diffdistill.tools import list_all

    list_all.list_all()
    return streams.flushed(0)
  # Takes seconds, in which signals come too.
  from diffdistill import cli

  return streams.flushed(cli.main())


if __name__ == "__main__":
  sys.exit(main())
