"""The cost of training, in forward passes of the denoiser."""

import itertools
from collections.abc import Callable

from diffdistill.objectives.objective import Objective
from diffdistill.training.pairs_stage import Pairs
from diffdistill.training.stage import Round


def round_passes(
  objective: Objective, round_: Round
) -> Callable[[int], int | float]:
  """Returns a function from n to the passes of the first n updates of a round.

  A pass is a forward pass of the denoiser for one example of a batch.
  """
  units = [
    objective.passes(turn, round_.num_steps, round_.guided).units
    for turn in objective.cycle
  ]
  before = [0, *itertools.accumulate(units)]

  def passes(updates: int) -> int | float:
    cycles, rest = divmod(updates, len(units))
    return cycles * before[-1] + before[rest]

  return passes


def pair_passes(stage: Pairs, round_: Round, num_pairs: int) -> int:
  """Counts the passes that make `num_pairs` pairs and all held-out pairs."""
  per_step = stage.sampler.evaluations * stage.guidance.passes(round_.guided)
  return (num_pairs + stage.held_out) * stage.num_steps * per_step
