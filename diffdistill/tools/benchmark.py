"""The command that times how fast a recipe trains and samples."""

from pathlib import Path
from typing import Any

from diffdistill.run import from_config
from diffdistill.system.files import json_of
from diffdistill.tools.timing import benchmark as measure

TURNS = 5


def benchmark(
  config: Any,
  stage: str | None,
  num_updates: int,
  num_steps: tuple[int, ...],
  profile: Path | None,
) -> None:
  """Prints, as JSON, how fast a recipe trains and samples, see timing.py."""
  run = from_config.build(config)
  run.source.check()
  result = measure(run, stage, num_updates, TURNS, num_steps, profile)
  # A report reads it, where it is put into a workdir.
  print(json_of(result))
