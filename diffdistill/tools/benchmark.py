"""The command that times how fast a recipe trains and samples."""

from pathlib import Path
from typing import Any

from etils import epath

from diffdistill.run import from_config
from diffdistill.system.files import json_of
from diffdistill.tools.timing import benchmark as measure

TURNS = 5


def benchmark(
  config: Any,
  stage: str | None,
  num_updates: int,
  num_steps: tuple[int, ...],
  profile: epath.Path | None,
) -> None:
  """Prints, as JSON, how fast a recipe trains and samples; see timing.py."""
  run = from_config.build(config)
  run.source.check()
  traces = None if profile is None else Path(profile)
  result = measure(run, stage, num_updates, TURNS, num_steps, traces)
  # A report shows these times if a file in the workdir holds this JSON.
  print(json_of(result))
