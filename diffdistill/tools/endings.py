"""The lines printed when a run begins and when it is finished."""

import shlex
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from diffdistill.run.experiment import Experiment


def already(rounds: Mapping[str, bool]) -> str:
  """One line about the finished rounds, which are not trained again.

  Args:
    rounds: for each round, in order, whether it is finished.
  """
  finished = [name for name, is_finished in rounds.items() if is_finished]
  if len(finished) == len(rounds):
    return "finished already, so nothing is trained"
  return f"finished already: {named(finished)}"


def beginning(
  run: Experiment, workdir: epath.Path, finished: Mapping[str, bool]
) -> Iterator[str]:
  """Lines about the minutes that a training with a time limit will take.

  Args:
    run: the recipe.
    workdir: the folder of the run.
    finished: for each round, whether it is finished.
  """
  seconds: dict[str, float] = {}
  picture = ""
  for name, (stage, round_) in run.rounds.items():
    if finished[name] or not round_.seconds:
      continue
    if not picture and name in run.models:
      before = sum(seconds.values()) / 60
      sheet = workdir / "samples" / f"{name.replace('/', '_')}.png"
      picture = f"; pictures: {sheet}, after {before:.3g} minutes or more"
    seconds[stage.name] = seconds.get(stage.name, 0) + round_.seconds
  if seconds:
    parts = ", ".join(f"{name} {s / 60:.3g}" for name, s in seconds.items())
    yield (
      f"about {sum(seconds.values()) / 60:.3g} minutes of training ({parts}),"
      f" and some more to compile and to draw{picture}"
    )


def ending(workdir: epath.Path, rounds: Sequence[str], *, judged: bool) -> str:
  """One line about a finished run: its rounds, and the next commands to use.

  Args:
    workdir: the folder of the run.
    rounds: the names of the run's rounds, in order.
    judged: whether the run has a network whose features judge images.
  """
  command, *others = ["evaluate"] * judged + ["sample", "report", "export"]
  place = shlex.quote(str(workdir))
  return (
    f"{workdir} holds {named(rounds)}; next: `diffdistill {command}"
    f" --workdir={place}`, or {', '.join(others)}"
  )


def named(rounds: Sequence[str]) -> str:
  """The rounds in words: the first and the last round of each stage."""
  stages: dict[str, list[str]] = {}
  for name in rounds:
    stages.setdefault(name.split("/")[0], []).append(name)
  return ", ".join(
    each[0] if len(each) == 1 else f"{each[0]} to {each[-1].split('/')[-1]}"
    for each in stages.values()
  )
