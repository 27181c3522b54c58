"""The lines about a run that is finished, or partly finished."""

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


def ending(workdir: epath.Path, rounds: Sequence[str], *, judged: bool) -> str:
  """One line about a finished run: what there is, and what can follow.

  Args:
    workdir: the folder of the run.
    rounds: the names of its rounds, in order.
    judged: whether the run has a network whose features judge images.
  """
  command, *others = ["evaluate"] * judged + ["sample", "report", "export"]
  place = shlex.quote(str(workdir))
  return (
    f"{workdir} holds {named(rounds)}; next: `diffdistill {command}"
    f" --workdir={place}`, or {', '.join(others)}"
  )


def named(rounds: Sequence[str]) -> str:
  """The rounds in words: of each stage the first and the last."""
  stages: dict[str, list[str]] = {}
  for name in rounds:
    stages.setdefault(name.split("/")[0], []).append(name)
  return ", ".join(
    each[0] if len(each) == 1 else f"{each[0]} to {each[-1].split('/')[-1]}"
    for each in stages.values()
  )
