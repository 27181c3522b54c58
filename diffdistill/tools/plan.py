"""The command that prints what a recipe costs on a topology."""

import json
import os
from pathlib import Path
from typing import Any

from diffdistill.planning import plan as planning
from diffdistill.tools.speaking import say


def plan(config: Any, topology: str, as_json: bool) -> None:
  """Prints what a recipe costs on a topology, as a table or as JSON.

  Raises:
    ValueError: where a program does not fit, after printing.
  """
  # Where other programs of a user keep what they can make again.
  caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  made = planning.make_plan(config, topology, Path(caches) / "diffdistill", say)
  if as_json:
    print(json.dumps(planning.as_json(made), indent=2))
  else:
    print(planning.table(made))
  refusal = planning.refusal(made)
  if refusal is not None:
    raise ValueError(refusal)
