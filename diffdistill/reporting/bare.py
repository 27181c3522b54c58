"""What the updates of a run take by themselves, of `diffdistill benchmark`."""

import dataclasses
import json
from typing import Any

from etils import epath

from diffdistill.reporting.scales import Number

# Its output, in a workdir.
FILE = "benchmark.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bare:
  """The update of a stage.

  Args:
    seconds: of one.
    devices: that it was timed on, such as "8 TPU v5e".
  """

  seconds: Number
  devices: str


def read_bare(workdir: epath.Path, notes: list[str]) -> dict[str, Bare]:
  """The updates by stage; none where nothing was timed.

  Args:
    workdir: of the run.
    notes: gets what cannot be read.
  """
  path = workdir / FILE
  if not path.exists():
    return {}
  try:
    written = json.loads(path.read_bytes().decode())
    devices = str(written["devices"])
    return {
      str(stage["stage"]): Bare(seconds=_seconds(stage), devices=devices)
      for stage in written["stages"]
    }
  except (ValueError, KeyError, TypeError):
    notes.append(
      f"{FILE} is damaged; write the output of diffdistill benchmark there."
    )
    return {}


def _seconds(stage: Any) -> Number:
  seconds = float(stage["bare_seconds_per_update"])
  if not seconds > 0:
    raise ValueError(f"an update of {seconds} s")
  return seconds
