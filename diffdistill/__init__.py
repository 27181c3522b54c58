"""diffdistill: few-step students of diffusion teachers, in JAX.

A program or a notebook needs three functions:

  config = diffdistill.recipe("digits:progressive")
  run = diffdistill.train(config, "runs/digits")
  run = diffdistill.open("runs/digits")
  run.models, run.sample(...), run.sheet(...), run.evaluate(...), run.curve(),
  run.losses(...), run.cost(), run.export(...)

The rooms, each importing only from those before it:

  version      the version, alone
  configs      the recipes: a link to configs/ at the top of the repository
  arrays       names of what flows
  images       bytes <-> floats: the one rounding rule
  kinds        tables of classes, by the `kind` of a config
  ranges       the range of each number that can be set
  fields       the builder: plain fields into dataclasses
  system       files, places, locks, signals, and the processes of one run
  diffusion    the mathematics: schedules, processes, predictions, weightings,
               guidance
  networks     the architectures, sealed behind `Network`
  denoiser     network + process = D(params, x_t, t) -> Prediction(x0, eps)
  sampling     from noise to image
  objectives   the papers, one file each
  data         batch(step), a pure function of (seed, step)
  evaluation   the mathematics of judging; sample sheets, curves
  training     the loop, its state, its checkpoints, its reports
  interop      models of other frameworks, in and out
  run          a recipe, built; a workdir, opened
  judging      the judge of a run, and the rows of its evaluation
  planning     what a recipe costs on a pod, by the pod's compiler
  reporting    report.html: one page of one run, or of several; model cards
  tools        what each command does
  api          what `import diffdistill` gives: open, train, recipe and a Run
  cli          the table of commands; help, refusals and calls follow from it
"""

import importlib
from typing import TYPE_CHECKING, Any

from diffdistill.version import VERSION

__version__ = VERSION
__all__ = ["Run", "open", "recipe", "train"]

if TYPE_CHECKING:
  from diffdistill.api import Run, open, recipe, train


def __getattr__(name: str) -> Any:
  """A name of the public API; JAX is imported when the first one is used."""
  if name not in __all__:
    raise AttributeError(f"module 'diffdistill' has no attribute {name!r}")
  return getattr(importlib.import_module("diffdistill.api"), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
