"""Trains a round again: gives the old rounds new names, and keeps them.

Every step can be repeated, so a redo that was killed goes on with the same
command. The old config stays in config.json until all names are changed.
"""

import dataclasses
from collections.abc import Iterator, Mapping

from etils import epath

from diffdistill.data.record import read as read_facts
from diffdistill.fields import Fields
from diffdistill.judging import judged_rows, summaries
from diffdistill.run import from_config, redone
from diffdistill.run.experiment import Experiment
from diffdistill.run.workdir import binding, check_continues, stored_config
from diffdistill.system import hosts
from diffdistill.system.files import digest_of, move
from diffdistill.tools.speaking import say
from diffdistill.training.records import rename_rounds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Redo:
  """A round that is trained again.

  Args:
    name: the name of the round.
    stage: the name of its stage, whose fields may change.
    entries: the entries of redone.json; the last one is of this redo.
  """

  name: str
  stage: str
  entries: tuple[Fields, ...]

  @property
  def old(self) -> Mapping[str, str]:
    """The new names of old folders that are not moved yet, by old name."""
    last = self.entries[-1]
    return {} if last["moved"] else last["old"]


def plan(run: Experiment, workdir: epath.Path, name: str) -> Redo:
  """Checks that a round can be trained again; changes nothing.

  If the last redo was of the same round with the same config, it goes on.

  Args:
    run: the recipe of the new rounds.
    workdir: the folder of the run.
    name: the name of the round.

  Raises:
    ValueError: if the round does not exist or has not begun, or if the new
      config changes the rounds before it.
  """
  config = stored_config(workdir)
  known = redone.entries(workdir)
  rounds = run.rounds
  if name not in rounds:
    raise ValueError(
      f"redo is {name}, which is no round of this config; pass one of"
      f" {', '.join(rounds)}"
    )
  stage = rounds[name][0].name
  asked = digest_of(dict(binding(run.config, run.config["run"])))
  if known and (known[-1]["round"], known[-1]["asked"]) == (name, asked):
    say(f"the redo of {name} with this config goes on")
    return Redo(name=name, stage=stage, entries=tuple(known))
  if known and not known[-1]["moved"]:
    raise ValueError(_interrupted(workdir, known[-1]["round"]))
  facts = read_facts(workdir)
  before = from_config.rebuild({**config, "mesh": {}}, facts=facts).rounds
  begun = hosts.on_first(lambda: [n for n in before if (workdir / n).exists()])
  if name not in begun:
    raise ValueError(
      f"redo is {name}, which has not begun in {workdir}; leave redo out, or"
      f" pass one of {', '.join(begun) or 'the finished rounds'}"
    )
  if list(_earlier(before, name)) != list(_earlier(rounds, name)):
    raise ValueError(
      f"redo is {name}, but this config changes the rounds of {stage} before"
      " it; pass the steps and the frozen weights that they were made with, or"
      " redo the first round that changes"
    )
  moved = [n for n in redone.from_it(before, name) if n in begun]
  kept = {before[n][0].name for n in begun if n not in moved}
  free = {stage, *(before[n][0].name for n in moved)} - (kept - {stage})
  hosts.on_first(lambda: check_continues(workdir, run.config, free))
  entry = {
    "round": name,
    "old": hosts.on_first(lambda: _new_names(workdir, moved, config)),
    "config": config,
    "asked": asked,
    "moved": False,
  }
  return Redo(name=name, stage=stage, entries=(*known, entry))


def check_no_redo_is_open(workdir: epath.Path) -> None:
  """Refuses a training without --redo after a redo that was interrupted.

  Raises:
    ValueError: if some old rounds have their new names, and others do not.
  """
  known = redone.entries(workdir)
  if known and not known[-1]["moved"]:
    raise ValueError(_interrupted(workdir, known[-1]["round"]))


def rename_old_rounds(redo: Redo, workdir: epath.Path) -> None:
  """Gives the old rounds, and all that is known of them, their new names."""
  old = redo.old
  if not old:
    return
  redone.write_entries(workdir, list(redo.entries))

  def rename() -> None:
    for name, new in old.items():
      move(workdir / name, workdir / new)
      sheet, renamed = (f"{n.replace('/', '_')}.png" for n in (name, new))
      move(workdir / "samples" / sheet, workdir / "samples" / renamed)
    models = {**old, **{f"{n} last": f"{new} last" for n, new in old.items()}}
    judged_rows.rename_models(workdir, models)
    summaries.rename_models(workdir, models)
    rename_rounds(workdir, old)

  hosts.on_first(rename)
  done = {**redo.entries[-1], "moved": True}
  redone.write_entries(workdir, [*redo.entries[:-1], done])
  for name, new in old.items():
    say(f"{name} is trained again; the old one is {new}")


def _earlier(rounds: redone.Rounds, name: str) -> Iterator[object]:
  """Describes the rounds of the same stage before a round."""
  stage = rounds[name][0].name
  for other, (maker, round_) in rounds.items():
    if other == name:
      return
    if maker.name == stage:
      yield other, round_.num_steps, dict(round_.frozen)


def _new_names(
  workdir: epath.Path, names: list[str], config: Fields
) -> dict[str, str]:
  """Chooses new names that nothing in the workdir has, by old name."""
  stages = {name.split("/")[0] for name in names}
  number = 1
  while any(
    f"{stage}-old{number}" in config["stages"]
    or (workdir / f"{stage}-old{number}").exists()
    for stage in stages
  ):
    number += 1
  return {
    name: "/".join([f"{stage}-old{number}", *rest])
    for name in names
    for stage, *rest in [name.split("/")]
  }


def _interrupted(workdir: epath.Path, name: str) -> str:
  return (
    f"the redo of {name} in {workdir} was interrupted before its first update;"
    f" pass --redo={name} with its config, to go on with it"
  )
