"""The rounds of a run that were trained again, and the names of the old ones.

`train --redo=halve/004` gives new names to the old round halve/004 and to all
old rounds that began from its weights: halve/004 becomes halve-old1/004. Each
redo has an entry in redone.json:

  round    the name that was given to --redo
  old      the new name of each old round, by its old name
  config   the config of the old rounds
  asked    a digest of the config of the new rounds
  moved    whether all folders and records have their new names
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from diffdistill.fields import Fields
from diffdistill.system import hosts
from diffdistill.system.files import read_json, write_json
from diffdistill.training.stage import Round, Stage

FILE = "redone.json"
ENTRIES = "entries"

Rounds = Mapping[str, tuple[Stage, Round]]


def entries(workdir: epath.Path) -> list[Fields]:
  """The redos of a run, the oldest first.

  Raises:
    ValueError: if the file is damaged.
  """

  def read() -> list[Fields]:
    try:
      return read_json(workdir / FILE)[ENTRIES]
    except FileNotFoundError:
      return []
    except (ValueError, KeyError) as error:
      raise ValueError(
        f"{error}; restore it: it names the rounds that were trained again"
      ) from error

  return hosts.on_first(read)


def write_entries(workdir: epath.Path, found: list[Fields]) -> None:
  """Writes the redos of a run."""
  hosts.on_first(lambda: write_json(workdir / FILE, {ENTRIES: found}))


def with_old_stages(config: Fields, found: list[Fields]) -> Fields:
  """A config that also has the stages of the old rounds, by their new names."""
  stages = dict(config["stages"])
  for entry in found:
    for old, new in entry["old"].items():
      name = old.split("/")[0]
      fields = dict(entry["config"]["stages"][name])
      frozen = fields.get("frozen") or {}
      fields["frozen"] = {
        what: _renamed(source, entry["old"]) for what, source in frozen.items()
      }
      stages[new.split("/")[0]] = fields
  return {**config, "stages": stages}


def old_rounds(
  rounds: Rounds, old: Mapping[str, str], later: Sequence[Mapping[str, str]]
) -> Iterator[tuple[Stage, Round]]:
  """The old rounds of a redo, with their new names.

  Args:
    rounds: the rounds of the old config.
    old: the new name of each old round, by its old name.
    later: the same for each later redo, which may rename their teachers.
  """

  def renamed(source: str) -> str:
    found = (names[source] for names in (old, *later) if source in names)
    return next(found, source)

  for name, new in old.items():
    stage, round_ = rounds[name]
    changed: dict[str, Any] = {"name": new.split("/")[0]}
    if stage.pairs:
      changed["pairs"] = renamed(stage.pairs)
    frozen = {what: renamed(name) for what, name in round_.frozen.items()}
    yield (
      dataclasses.replace(stage, **changed),
      dataclasses.replace(
        round_, name=new, stage=changed["name"], frozen=frozen
      ),
    )


def from_it(rounds: Rounds, name: str) -> list[str]:
  """A round, and all later rounds that begin from its weights or pairs."""
  found: list[str] = []
  for other, (stage, round_) in rounds.items():
    sources = {stage.pairs, *round_.frozen.values()}
    if other == name or sources & set(found):
      found.append(other)
  return found


def _renamed(source: str, old: Mapping[str, str]) -> str:
  """The new name of a round or of a whole stage; other names stay."""
  stages = {name.split("/")[0]: new.split("/")[0] for name, new in old.items()}
  return old.get(source, stages.get(source, source))
