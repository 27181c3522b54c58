"""The objects that all rounds of one run share."""

import dataclasses
from collections.abc import Callable
from typing import Any

from etils import epath

from diffdistill.arrays import Params
from diffdistill.system import hosts
from diffdistill.training.cadence import Cadence
from diffdistill.training.inputs import Inputs
from diffdistill.training.pair_rounds import PairRounds
from diffdistill.training.preemption import Preemption
from diffdistill.training.report import Report
from diffdistill.training.sharding import Layout, replicated
from diffdistill.training.stage import Round
from diffdistill.training.training_stage import Training
from diffdistill.training.watchdog import Watchdog

# A function that shows samples of a round to the user. Its arguments are the
# stage, the round, the weights so far and the number of updates done.
Observe = Callable[[Training, Round, Params, int], None]
# A function that returns the score of weights. Its arguments are the stage, the
# round, the weights so far and the number of images that are made to measure
# the score. A lower score is better.
Distance = Callable[[Training, Round, Params, int], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared:
  """The objects that all rounds of a run share; most come from `Trainer`.

  Args:
    inputs: gives each round its frozen weights and its batches.
    pair_rounds: makes pairs of noise and image.
    report: writes the reports of the run.
  """

  workdir: epath.Path
  seed: int
  layout: Layout
  cadence: Cadence
  observe: Observe
  distance: Distance
  preemption: Preemption
  watchdog: Watchdog
  now: Callable[[], float]
  inputs: Inputs
  pair_rounds: PairRounds
  report: Report

  def on_device(self, tree: Any) -> Any:
    """Puts a tree of scalars on every device."""
    return hosts.place(tree, replicated(self.layout.mesh))
