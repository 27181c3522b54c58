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

# Shows (stage, round, the product so far, updates done) to the user.
Observe = Callable[[Training, Round, Params, int], None]
# Returns the score of (stage, round, the product so far, number of images to
# measure it on); a lower score is better.
Distance = Callable[[Training, Round, Params, int], float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared:
  """The objects that all rounds of a run share; most come from `Trainer`.

  Args:
    inputs: gives each round its frozen weights and its batches.
    pair_rounds: makes pairs.
    report: the report of the run.
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
