"""The command and environment of a process that runs a module of this program.

A user's jax.py or diffdistill.py in the current folder is not imported there.
"""

import os
import sys
from pathlib import Path

# The folder in which the package diffdistill is.
_ROOT = str(Path(__file__).parents[2])


def command(module: str) -> tuple[str, ...]:
  """The words that start Python with a module of this program.

  With -P, Python does not import from the current folder.
  """
  return sys.executable, "-P", "-m", module


def environment() -> dict[str, str]:
  """The environment in which Python finds this program, installed or not."""
  paths = [_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
  return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
