"""Reads the times of bare updates, which `diffdistill benchmark` measured.

A bare update is the compiled update alone, without data and logging.
"""

import dataclasses
import math
from typing import Any

from etils import epath

from diffdistill.evaluation.curves import Number
from diffdistill.system.files import matching, read_json

# The outputs of `diffdistill benchmark` in a workdir, one per kind of device.
FILES = "benchmark*.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bare:
  """The time of an update of a stage alone, without data and logging.

  Args:
    seconds: the time of one update.
    devices: the devices that it was timed on, such as "8 TPU v5e".
  """

  seconds: Number
  devices: str


def read_bare(workdir: epath.Path, notes: list[str]) -> dict[str, list[Bare]]:
  """The times of each stage's update, one for each kind of device.

  Args:
    workdir: the workdir of the run.
    notes: a list to which problems are added.
  """
  result: dict[str, list[Bare]] = {}
  for path in matching(workdir, FILES):
    try:
      written = read_json(path)
      devices = str(written["devices"])
      found = [
        (str(stage["stage"]), Bare(seconds=_seconds(stage), devices=devices))
        for stage in written["stages"]
      ]
    except (ValueError, KeyError, TypeError, OSError):
      found = []
      notes.append(
        f"{path.name} is damaged; write the output of diffdistill benchmark"
        " there again."
      )
    for stage, bare in found:
      result.setdefault(stage, []).append(bare)
  return result


def _seconds(stage: Any) -> Number:
  seconds = float(stage["bare_seconds_per_update"])
  if not 0 < seconds < math.inf:
    raise ValueError(f"an update of {seconds} s")
  return seconds
