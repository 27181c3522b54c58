"""Chooses values for the fields that say "auto", to suit the other fields."""

import dataclasses
import math
from typing import Any

from diffdistill.fields import Fields
from diffdistill.run import chosen
from diffdistill.run.at_path import Path, at, automatic_paths, put
from diffdistill.run.chosen import AUTO, Device, Found
from diffdistill.run.network_size import Size
from diffdistill.run.sections import raw_section, stages_of_run

# The share of training images whose labels are left out, so that samples can
# be guided (Ho & Salimans 2022).
LABEL_DROPOUT = 0.1


def choose(
  fields: Fields, found: Found, device: Device
) -> tuple[dict[Path, Any], list[str]]:
  """Chooses a value for each field that can be automatic, and explains it.

  If the config gives a field a value, this value stays, and the values chosen
  for other fields suit it.

  Args:
    fields: the fields of the whole config.
    found: the known facts about the images.
    device: the known facts about the devices.

  Returns:
    The value of each field, by its path; and lines that state the reasons.
  """
  values: dict[Path, Any] = {}

  def pick(path: str, value: Any) -> Any:
    """Takes this value, unless the config gives a value of its own."""
    keys = tuple(path.split("."))
    given = at(fields, keys)
    # If the given value is wrong, ignore it here; the builder will refuse it.
    values[keys] = given if _is_like(given, value) else value
    return values[keys]

  kind = device.kind
  colours = pick("data.source.channels", 1 if found.grey else 3)
  told = pick("data.conditional", sum(n > 0 for n in found.counts) > 1)
  pick("model.label_dropout", LABEL_DROPOUT if told else 0.0)
  can_judge = chosen.can_be_judged(found)
  if at(fields, ("classifier", "kind")) == AUTO:
    values["classifier", "kind"] = "resnet" if can_judge else None
  pick("classifier.channels", 16 if kind == "cpu" else 64)
  pick("evaluation.num_images", chosen.NUM_IMAGES[kind])
  total = pick("minutes", chosen.minutes(stages_of_run(fields), kind))
  shared = without_judge(_with_values(fields, values))
  shares = _minutes(shared, float(total))
  for name, share in shares.items():
    pick(f"stages.{name}.minutes", share)
  given = _network_of(fields)
  teacher = _teacher(shared)
  seconds = 60 * values.get(("stages", teacher, "minutes"), total)
  sides = chosen.image_sizes(found.sides, kind)
  side = chosen.image_size(sides, colours, given, seconds, device)
  side = pick("data.source.image_size", side)
  size, batch = chosen.network(side, colours, given, seconds, device)
  for name, value in dataclasses.asdict(size).items():
    pick(f"model.network.{name}", value)
  pick("model.network.dtype", chosen.dtype(kind))
  batch = pick(f"stages.{teacher}.batch_size", batch)
  pick(f"stages.{teacher}.enough_updates", chosen.UPDATES[kind])
  update = chosen.seconds_of(size, side, batch, device)
  for name, every in chosen.cadence(update).items():
    pick(f"cadence.{name}", every)
  _pick_stages(fields, pick, batch, can_judge, found)
  return values, [
    _said_of_images(side, found, told, values, can_judge),
    _said_of_device(device, size, batch, seconds, update),
  ]


def _pick_stages(
  fields: Fields, pick: Any, batch: int, can_judge: bool, found: Found
) -> None:
  """Chooses the sizes of all stages except the teacher's."""
  enough = can_judge and chosen.enough_to_select(found)
  stages = raw_section(fields, "stages")
  for name in stages:
    stage = raw_section(stages, name, "stages")
    pick(f"stages.{name}.batch_size", batch)
    if stage.get("kind") == "pairs":
      pick(f"stages.{name}.held_out", 8 * batch)
      shard = pick(f"stages.{name}.shard_size", 16 * batch)
      pick(f"stages.{name}.num_pairs", 100 * shard)
    elif "select" in stage:
      every = chosen.SELECT_EVERY if enough else 0
      pick(f"stages.{name}.select.every", every)


def _network_of(fields: Fields) -> Fields:
  """Finds which fields of the network's size have a value in the config."""
  model = raw_section(fields, "model")
  network = raw_section(model, "network", "model")
  usual = {"patch": 1, "channels": 1, "multipliers": (1,), "attention": (1,)}
  return {
    name: network[name]
    for name, value in usual.items()
    if _is_like(network.get(name), value)
  }


def _is_like(given: Any, value: Any) -> bool:
  """Whether a value of the config has the type and range of a chosen value."""
  if isinstance(value, bool | str | None):
    return given != AUTO and isinstance(given, type(value))
  if isinstance(value, tuple):
    return isinstance(given, tuple) and all(_is_like(g, 1) for g in given)
  if isinstance(given, bool) or not isinstance(given, int | float):
    return False
  return 0 < given < math.inf and isinstance(given, int | type(value))


def _with_values(fields: Fields, values: dict[Path, Any]) -> Fields:
  for path in automatic_paths(fields):
    if path in values:
      fields = put(fields, path, values[path])
  return fields


def _teacher(fields: Fields) -> str:
  """The name of the teacher's stage; if it is missing, of the first stage."""
  for name, stage in stages_of_run(fields).items():
    if at(stage, ("objective", "kind")) == "denoising":
      return name
  return fields["run"][0]


def _minutes(fields: Fields, total: float) -> dict[str, float]:
  """The minutes of each stage; 0 for a stage that is not run.

  Raises:
    ValueError: if a stage of the run has no share.
  """
  shares = raw_section(fields, "shares")
  run = [
    name
    for name, stage in stages_of_run(fields).items()
    if stage.get("minutes") == AUTO
  ]
  for name in run:
    if not _is_like(shares.get(name), 1.0):
      raise ValueError(
        f"stages.{name}.minutes is 'auto', but shares.{name} is"
        f" {shares.get(name)!r}; pass the relative length of the stage, such as"
        " 1.0"
      )
  parts = sum(shares[name] for name in run)
  return {
    name: total * shares[name] / parts if name in run else 0.0
    for name in fields["stages"]
  }


def without_judge(fields: Fields) -> Fields:
  """The fields without the classifier's stages, if there is no classifier."""
  if at(fields, ("classifier", "kind")) is not None or not isinstance(
    fields.get("classifier"), dict
  ):
    return fields
  gone: set[str] = set()
  for name, stage in stages_of_run(fields).items():
    frozen = stage.get("frozen", {})
    makers = {source.split("/")[0] for source in frozen.values()}
    classifies = at(stage, ("objective", "kind")) == "classification"
    if classifies or "classifier" in frozen or makers & gone:
      gone.add(name)
  run = tuple(name for name in fields["run"] if name not in gone)
  rest = {name: part for name, part in fields.items() if name != "classifier"}
  return {**rest, "run": run}


def _said_of_images(
  side: int, found: Found, told: bool, values: dict[Path, Any], judged: bool
) -> str:
  least, most = min(found.sides), max(found.sides)
  theirs = f"{least} to {most}" if least < most else f"{most}"
  line = (
    f"chosen for these images: {side}x{side} pixels (of {len(found.sides)}"
    f" that were examined, the shorter side has {theirs} pixels),"
    f" {'grey' if values['data', 'source', 'channels'] == 1 else 'colour'},"
    f" {'told' if told else 'not told'} their classes"
  )
  if judged:
    return f"{line}, judged by a classifier of their own"
  return (
    f"{line}; too few images or classes for a classifier that judges, so that"
    " `evaluate` needs --inception"
  )


def _said_of_device(
  device: Device, size: Size, batch: int, seconds: float, update: float
) -> str:
  updates = seconds / update
  line = (
    f"chosen for this device, {device.speed / 1e9:,.0f} GFLOP/s by a short"
    f" measurement: {size.words}, batches of {batch}; about"
    f" {_two_digits(updates):,} updates of the teacher fit into its"
    f" {seconds / 60:.3g} minutes"
  )
  if updates >= chosen.UPDATES[device.kind]:
    return line
  return f"{line}, which is few; pass more --config.minutes for better pictures"


def _two_digits(number: float) -> int:
  return int(float(f"{number:.2g}"))
