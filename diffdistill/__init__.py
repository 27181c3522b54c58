"""diffdistill: few-step students of diffusion teachers, in JAX.

A program or a notebook needs three functions:

  config = diffdistill.recipe("digits:progressive")
  run = diffdistill.train(config, "runs/digits")
  run = diffdistill.open("runs/digits")
  run.models, run.sample(...), run.sheet(...), run.evaluate(...), run.curve(),
  run.losses(...), run.cost(), run.export(...)

The packages and modules; each imports only from those above it:

  version      the version of this program
  configs      the recipes: a link to configs/ at the top of the repository
  arrays       types of arrays, which all packages share
  images       converts images between bytes and floats
  kinds        tables of classes, by the `kind` of a config
  ranges       the range of each number that can be set
  fields       builds dataclasses from the plain fields of a config
  system       files, paths, locks, signals, and the processes of one run
  diffusion    the mathematics: schedules, processes, predictions, weightings,
               guidance
  networks     the architectures, behind the interface `Network`
  denoiser     network + process = D(params, x_t, t) -> Prediction(x0, eps)
  sampling     samplers, which turn noise into images
  objectives   the losses of the papers, one file for each method
  data         batches, each a pure function of the seed and the step
  evaluation   the distances of images to the data; sample sheets, curves
  training     the training loop, its state, checkpoints and reports
  interop      imports and exports models of other frameworks
  run          builds the objects of a recipe, and opens a workdir
  judging      the network that judges a run, and its evaluation rows
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
  """Returns a name of the public API; its first use imports JAX."""
  if name not in __all__:
    raise AttributeError(f"module 'diffdistill' has no attribute {name!r}")
  return getattr(importlib.import_module("diffdistill.api"), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
