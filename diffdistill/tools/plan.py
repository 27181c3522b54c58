"""The command that prints what a recipe costs on a topology."""

import json
import os
from pathlib import Path
from typing import Any

from diffdistill.planning import plan as planning
from diffdistill.tools.speaking import say


def plan(config: Any, topology: str, as_json: bool) -> None:
  """Prints what a recipe costs on a topology, as a table or as JSON.

  Args:
    config: the recipe.
    topology: the chips, such as v5e:8x8.
    as_json: whether to print JSON instead of a table.

  Raises:
    ValueError: if a program does not fit; the cost is printed first.
  """
  # Keep the results in the usual folder of a user's caches.
  caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  made = planning.make_plan(config, topology, Path(caches) / "diffdistill", say)
  if as_json:
    print(json.dumps(planning.as_json(made), indent=2))
  else:
    print(planning.table(made))
  refusal = planning.refusal(made)
  if refusal is not None:
    raise ValueError(refusal)
