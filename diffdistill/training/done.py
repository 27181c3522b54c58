"""Counts the work of a round by its records in metrics.jsonl."""

import dataclasses
import math

from etils import epath

from diffdistill.training.records import read_records


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
  """The work of one round.

  Args:
    updates: how many updates are recorded.
    chosen: the update whose weights were selected by a score; 0 if there is
      none.
  """

  updates: int = 0
  chosen: int = 0


def done(workdir: epath.Path, name: str, score: str = "") -> Done:
  """Reads the recorded work of a round.

  Args:
    workdir: the folder of the run.
    name: the name of the round.
    score: the name of the score that selected the round's weights; "" if no
      score did.
  """
  updates, chosen, best = 0, 0, math.inf
  for _, record in read_records(workdir).good:
    if record["round"] != name:
      continue
    step, found = record["step"], record.get(score)
    updates = max(updates, step)
    # If two scores are equal, the earlier one is the best, as in Selector.
    if isinstance(found, int | float) and found < best:
      chosen, best = step, found
  return Done(updates=updates, chosen=chosen)
