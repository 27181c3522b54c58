"""What a person is told of a run that is finished, wholly or in part."""

import shlex
from collections.abc import Mapping, Sequence

from etils import epath


def already(rounds: Mapping[str, bool]) -> str:
  """One line about the rounds that are not trained again.

  Args:
    rounds: whether each is finished, in order.
  """
  finished = [name for name, is_finished in rounds.items() if is_finished]
  if len(finished) == len(rounds):
    return "finished already, so nothing is trained"
  return f"finished already: {named(finished)}"


def ending(workdir: epath.Path, rounds: Sequence[str]) -> str:
  """One line about a finished run: what there is, and what can follow."""
  place = shlex.quote(str(workdir))
  return (
    f"{workdir} holds {named(rounds)}; next: `diffdistill evaluate"
    f" --workdir={place}`, or sample, report, export"
  )


def named(rounds: Sequence[str]) -> str:
  """Rounds, those of one stage from the first to the last."""
  stages: dict[str, list[str]] = {}
  for name in rounds:
    stages.setdefault(name.split("/")[0], []).append(name)
  return ", ".join(
    each[0] if len(each) == 1 else f"{each[0]} to {each[-1].split('/')[-1]}"
    for each in stages.values()
  )
