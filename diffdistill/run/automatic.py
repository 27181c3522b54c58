"""Replaces each "auto" in a config by a value.

The values are chosen by choosing.py when a run begins, and the workdir records
them. A run that is resumed takes the recorded values, so another device
continues with the same network. A field for which no value can be chosen stays
"auto", and is refused like any other wrong value.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from diffdistill.data.folder import Folder
from diffdistill.data.sources import Source
from diffdistill.fields import Fields, plain
from diffdistill.run import chosen, speed
from diffdistill.run.at_path import at, automatic_paths, put
from diffdistill.run.choosing import choose, without_judge
from diffdistill.run.chosen import AUTO, Device, Found
from diffdistill.run.sections import BUILDER, raw_section
from diffdistill.run.workdir import stored_config
from diffdistill.system import hosts

DTYPE = ("model", "network", "dtype")
# The largest number of pictures whose size and colours are examined.
MEASURED = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved:
  """A config without "auto", and lines that state the choices and reasons."""

  fields: Fields
  said: tuple[str, ...] = ()


def resolved_automatic(
  fields: Fields,
  devices: Sequence[jax.Device] | None = None,
  workdir: epath.Path | None = None,
) -> Resolved:
  """The config with a value for each "auto"; every process must call this.

  Args:
    fields: the fields of the whole config.
    devices: the devices of a plan, whose speed is assumed; None for the devices
      of this run, whose speed is measured.
    workdir: the folder of the run; if a run has begun there, its recorded
      values are used again.

  Raises:
    ValueError: if the images cannot be read, or a stage has no share.
  """
  if not any(automatic_paths(fields)):
    return Resolved(fields=fields)
  known = None
  if workdir is not None:
    known = hosts.on_first(lambda: _recorded(workdir))
  said: tuple[str, ...] = ()
  if known is not None:
    fields = _as_recorded(fields, plain(known))
    said = (f"chosen before: the automatic fields in {workdir}/config.json",)
  if set(automatic_paths(fields)) == {DTYPE}:
    # This choice needs neither the images nor a measurement.
    kind = speed.kind_of((jax.devices() if devices is None else devices)[0])
    fields = put(fields, DTYPE, chosen.dtype(kind))
    if kind != "cpu":
      said = (
        f"chosen for this device: networks compute in {chosen.dtype(kind)}",
      )
  if any(automatic_paths(fields)):
    found = _look(fields)
    # The first process chooses for all, since each may measure another speed.
    choice = hosts.on_first(lambda: _choices(fields, found, devices))
    for path, value in choice["values"]:
      fields = put(fields, tuple(path), plain(value))
    said = said or tuple(choice["said"])
  return Resolved(fields=without_judge(_without_shares(fields)), said=said)


def _recorded(workdir: epath.Path) -> Fields | None:
  if not (workdir / "config.json").exists():
    return None
  return stored_config(workdir)


def _as_recorded(fields: Fields, known: Fields) -> Fields:
  """Replaces each "auto" by the value that the workdir recorded, if any."""
  same = at(fields, ("minutes",)) in (AUTO, known.get("minutes"))
  for path in automatic_paths(fields):
    value = at(known, path)
    # If the user changes the total minutes, the shares are computed again; a
    # stage that has begun refuses another share.
    if value is not None and (same or path[-1] != "minutes"):
      fields = put(fields, path, value)
  kind = ("classifier", "kind")
  if at(fields, kind) == AUTO and not known.get("classifier"):
    fields = put(fields, kind, None)
  return without_judge(fields)


def _look(fields: Fields) -> Found:
  """Examines the images for the facts that the choices depend on."""
  data = raw_section(raw_section(fields, "data"), "source", "data")
  usual = {"image_size": 32, "channels": 3}
  section = {
    name: usual.get(name) if value == AUTO else value
    for name, value in data.items()
  }
  source: Source = BUILDER.build("data.source", Source, section)
  source.check()
  test = source.held_out()
  if test is not None:
    try:
      test.check()
    except FileNotFoundError:
      test = None
  if isinstance(source, Folder):
    measured = hosts.on_first(lambda: source.measured(MEASURED))
  else:
    height, width, channels = source.image_shape
    measured = [(min(height, width), channels == 1)]
  return Found(
    sides=tuple(side for side, _ in measured),
    grey=all(grey for _, grey in measured),
    counts=source.label_counts,
    held_out=None if test is None else len(test),
  )


def _choices(
  fields: Fields, found: Found, devices: Sequence[jax.Device] | None
) -> dict[str, Any]:
  """Chooses values; returns these by path and lines about them, for JSON."""
  if devices is None:
    one = speed.measured_speed()
    memory, devices = speed.memory_of(jax.local_devices()[0]), jax.devices()
  else:
    one = speed.ASSUMED[speed.kind_of(devices[0])]
    memory = math.inf
  device = Device(
    kind=speed.kind_of(devices[0]),
    count=len(devices),
    speed=one * (1 if devices[0].platform == "cpu" else len(devices)),
    memory=memory,
  )
  values, said = choose(fields, found, device)
  return {
    "values": [
      (path, values[path]) for path in automatic_paths(fields) if path in values
    ],
    "said": said,
  }


def _without_shares(fields: Fields) -> Fields:
  """Removes `shares`: the minutes of each stage replace the shares."""
  return {name: value for name, value in fields.items() if name != "shares"}
