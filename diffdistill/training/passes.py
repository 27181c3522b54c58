"""What training costs, in forward passes of the denoiser."""

from collections.abc import Callable

from diffdistill.objectives.objective import Objective
from diffdistill.training.stage import Pairs, Round


def round_passes(
  objective: Objective, round_: Round
) -> Callable[[int], int | float]:
  """The passes, per example of a batch, of the first n updates of a round."""
  turns, before = [], 0
  # The turns of every objective repeat after as many steps as it has trees.
  for step in range(len(objective.trains)):
    turns.append(before)
    before += sum(
      objective.passes(name, round_.guided).units
      for name in objective.turn(step)
    )

  def passes(updates: int) -> int | float:
    cycles, rest = divmod(updates, len(turns))
    return cycles * before + turns[rest]

  return passes


def pair_passes(stage: Pairs, round_: Round, num_pairs: int) -> int:
  """The passes that make so many pairs to train on, and those held out."""
  per_step = stage.sampler.evaluations * stage.guidance.passes(round_.guided)
  return (num_pairs + stage.held_out) * stage.num_steps * per_step
