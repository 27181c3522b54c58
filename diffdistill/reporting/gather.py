"""Reads a workdir for a report, even if some files are damaged or missing."""

import dataclasses
import datetime
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from diffdistill.data.record import read as read_facts
from diffdistill.evaluation.curves import Number
from diffdistill.fields import Fields
from diffdistill.judging.summaries import FILE
from diffdistill.reporting.bare import Bare, read_bare
from diffdistill.reporting.judged import Judged, read_judged
from diffdistill.reporting.pictures import Picture, read_pictures
from diffdistill.run import from_config, redone
from diffdistill.run.experiment import Experiment
from diffdistill.run.workdir import stored_config
from diffdistill.training import checkpoint
from diffdistill.training.records import FILE as RECORDS
from diffdistill.training.records import read_records
from diffdistill.training.stage import Round, Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundLog:
  """The state and the records of one round.

  Args:
    name: the name of the round, such as "teacher" or "halve/004".
    stage: the name of its stage.
    unit: the unit of `done`: "updates" or "pairs".
    planned: the planned number of updates or pairs: from clock.json if the
      clock ends the round, else from the config; None if unknown.
    most: the number of updates or pairs in the config.
    finished: whether the round's result is in the workdir.
    makes_images: whether the round's model makes images; None if unknown.
    records: the records of metrics.jsonl, in the order written.
  """

  name: str
  stage: str
  unit: str = "updates"
  planned: int | None = None
  most: int | None = None
  finished: bool = False
  makes_images: bool | None = None
  records: tuple[Fields, ...] = ()

  @property
  def done(self) -> int:
    return max((record["step"] for record in self.records), default=0)

  @property
  def state(self) -> str:
    if self.finished:
      return "finished"
    return "under way" if self.records else "not begun"

  def lines(self, ending: str) -> dict[str, tuple[tuple[Number, Number], ...]]:
    """The (step, value) points of each recorded name that has an ending.

    Args:
      ending: for example "/loss", which matches student/loss and
        auxiliary/loss; the result has the keys student and auxiliary.
    """
    found: dict[str, list[tuple[Number, Number]]] = {}
    for record in self.records:
      for key, value in record.items():
        if key.endswith(ending) and is_number(value):
          name = key.removesuffix(ending)
          found.setdefault(name, []).append((float(record["step"]), value))
    return {name: tuple(points) for name, points in found.items()}

  def values(self, key: str) -> list[Number]:
    """The numbers recorded under a name, in order."""
    return [r[key] for r in self.records if is_number(r.get(key))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """The content of a workdir, as far as it can be read.

  Args:
    name: the name on the page; no other run of the page has it.
    place: the path of the workdir.
    written: the time of the last record; None if there is none.
    config: the config that the run was made with.
    experiment: the experiment of the config; None if it cannot be built here.
    judged: the evaluation; None if the run was not judged.
    rounds: the rounds of the config, then rounds that only metrics.jsonl has.
    compared: the sheet of all models from the same noise.
    sheets: the sheets of the rounds.
    bare: the time of each stage's update alone, one for each kind of device
      that has a benchmark.
    notes: the missing or damaged things.
  """

  name: str
  place: str
  written: datetime.datetime | None
  config: Fields
  experiment: Experiment | None
  judged: Judged | None
  rounds: tuple[RoundLog, ...]
  compared: Picture | None
  sheets: tuple[Picture, ...]
  bare: Mapping[str, Sequence[Bare]]
  notes: tuple[str, ...]

  @property
  def stages(self) -> dict[str, tuple[RoundLog, ...]]:
    """The rounds of each stage, by the name of the stage."""
    result: dict[str, tuple[RoundLog, ...]] = {}
    for log in self.rounds:
      result[log.stage] = (*result.get(log.stage, ()), log)
    return result


def gather(workdir: epath.Path, name: str) -> Run:
  """Reads a workdir.

  Raises:
    ValueError: if it holds no run, or its config is damaged.
  """
  found = redone.entries(workdir)
  stored = stored_config(workdir)
  notes: list[str] = []
  experiment = _open(workdir, stored, found, notes)
  config = redone.with_old_stages(stored, found)
  rounds = _rounds(workdir, experiment, _records(workdir, notes), notes)
  compared, sheets = read_pictures(workdir, [log.name for log in rounds], notes)
  return Run(
    name=name,
    place=str(workdir),
    written=_written(workdir),
    config=config,
    experiment=experiment,
    judged=read_judged(workdir / FILE, notes),
    rounds=rounds,
    compared=compared,
    sheets=sheets,
    bare=read_bare(workdir, notes),
    notes=tuple(notes),
  )


def flat(
  fields: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Any]]:
  """The path and the value of each field of a config, in order."""
  for name, value in sorted(fields.items()):
    if isinstance(value, dict) and value:
      yield from flat(value, f"{path}{name}.")
    else:
      yield f"{path}{name}", value


def written(value: object) -> str:
  """A field's value as text; lists without brackets."""
  if not isinstance(value, list):
    return str(value)
  items = [f"({written(v)})" if isinstance(v, list) else str(v) for v in value]
  return ", ".join(items) or "none"


def is_number(value: object) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _open(
  workdir: epath.Path,
  config: Fields,
  found: list[Fields],
  notes: list[str],
) -> Experiment | None:
  # One device is enough, because no number of a report depends on the devices.
  one = jax.devices()[:1]
  try:
    run = from_config.rebuild({**config, "mesh": {}}, one, read_facts(workdir))
    return from_config.with_old_rounds(run, found, one)
  except Exception as error:
    # A config of another version, or missing data, may raise any error. The
    # rest of the page does not need the experiment.
    reason = " ".join(str(error).split()) or type(error).__name__
    notes.append(
      "The config cannot be built here, so lengths and operations are not"
      f" counted: {reason}."
    )
    return None


def _records(workdir: epath.Path, notes: list[str]) -> list[Fields]:
  try:
    read = read_records(workdir)
  except OSError as error:
    notes.append(f"{RECORDS} cannot be read: {error.strerror}.")
    return []
  if read.warning:
    notes.append(f"{read.warning}.")
  elif not read.good:
    notes.append(f"Nothing is recorded yet (no {RECORDS}).")
  return [record for _, record in read.good]


def _rounds(
  workdir: epath.Path,
  experiment: Experiment | None,
  records: Sequence[Fields],
  notes: list[str],
) -> tuple[RoundLog, ...]:
  """Reads the rounds of the config, then rounds that only metrics.jsonl has."""
  logs: dict[str, RoundLog] = {}
  for name, (stage, round_) in experiment.rounds.items() if experiment else ():
    most = stage.most(round_)
    # If the clock ends the round, num_updates is only an upper limit.
    timed = round_.seconds > 0
    logs[name] = RoundLog(
      name=name,
      stage=stage.name,
      unit=stage.unit,
      planned=_settled(workdir, stage, round_, notes) if timed else most,
      most=most,
      makes_images=stage.makes == "denoiser",
    )
  for name in dict.fromkeys(record["round"] for record in records):
    logs.setdefault(name, RoundLog(name=name, stage=name.split("/")[0]))
  return tuple(
    dataclasses.replace(
      log,
      # A round that only has records may have no folder.
      finished=checkpoint.has_final(workdir / log.name),
      records=tuple(r for r in records if r["round"] == log.name),
    )
    for log in logs.values()
  )


def _settled(
  workdir: epath.Path, stage: Stage, round_: Round, notes: list[str]
) -> int | None:
  """The updates of a round that the clock ends; None until they are settled."""
  try:
    return stage.settled(workdir / round_.name)
  except ValueError as error:
    notes.append(f"{error}.")
    return None


def _written(workdir: epath.Path) -> datetime.datetime | None:
  times = [
    (workdir / name).stat().mtime
    for name in ("config.json", RECORDS, FILE)
    if (workdir / name).exists()
  ]
  times = [time for time in times if time]
  if not times:
    return None
  return datetime.datetime.fromtimestamp(max(times), datetime.UTC)
