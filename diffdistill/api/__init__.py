"""The public API: `diffdistill.open`, `train`, `recipe`, and the class `Run`.

An error that the caller can correct is a ValueError of one line. The line names
the problem, the value and the remedy. Slow functions print their progress on
the standard error, like the commands. The first use of a run sets JAX's
generator of random numbers, and 32 bits, for the whole Python process.
"""

import os
from typing import Any

from diffdistill.api.paths import Path, place_of
from diffdistill.api.run import Run
from diffdistill.judging.exported import is_exported
from diffdistill.run import compilations, recipes
from diffdistill.run.workdir import stored_config
from diffdistill.system import started
from diffdistill.system.files import in_bucket
from diffdistill.tools import train as training

__all__ = ["Run", "open", "recipe", "train"]


def open(path: Path) -> Run:
  """Opens a run or an exported model.

  Args:
    path: the workdir of a run, or a folder of safetensors or StableHLO that
      `diffdistill export` wrote. The folder may be in a bucket (gs://...).

  Raises:
    ValueError: if the folder holds no run and no model, or is damaged.
  """
  folder = place_of("path", path)
  compilations.keep()
  if is_exported(folder):
    return Run(folder=folder, exported=True)
  if not (folder / "config.json").exists():
    raise ValueError(
      f"{folder} holds neither a run nor an exported model (safetensors or"
      " stablehlo); pass the workdir of a training, or the folder of an export"
    )
  stored_config(folder)
  return Run(folder=folder)


def recipe(name: Path) -> Any:
  """The config of a recipe; all its fields can be changed.

  Args:
    name: a name in `diffdistill list`, or FILE.py:RECIPE.

  Returns:
    A ConfigDict, for example with `config.stages.halve.num_updates = 200`.

  Raises:
    ValueError: if no recipe has this name.
  """
  return recipes.load(os.fspath(name))


def train(config: Any, workdir: Path, redo: str | None = None) -> Run:
  """Trains every round of a recipe that is not finished yet.

  After an interruption, the same call continues from the newest checkpoint.

  Args:
    config: the ConfigDict that `recipe` returns, or the same fields as nested
      mappings, or the name of a recipe.
    workdir: the folder of the run, on a disk or in a bucket.
    redo: a round to train again, such as "halve/004", with all later rounds
      that begin from it; the old rounds are kept, as "halve-old1/004".

  Returns:
    The trained run.

  Raises:
    ValueError: if a field is out of its range, if the workdir holds a run of
      another config, if another training is running in the workdir, or if the
      round cannot be trained again.
  """
  started.begin()
  folder = place_of("workdir", workdir)
  compilations.keep(folder if in_bucket(folder) else None)
  fields = recipe(config) if isinstance(config, str) else config
  training.train(fields, folder, redo)
  return Run(folder=folder)
