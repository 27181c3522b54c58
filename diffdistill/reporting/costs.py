"""The cost of each stage of a run, from its records and its programs."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from diffdistill.evaluation.curves import Number
from diffdistill.planning.chips import chip_of
from diffdistill.planning.flops import count_flops
from diffdistill.planning.programs import Program, programs
from diffdistill.reporting.bare import Bare
from diffdistill.reporting.gather import RoundLog, Run, is_number
from diffdistill.run.experiment import Experiment
from diffdistill.training.report import APART, FIRST_UPDATE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
  """The cost of a stage or of a run; unknown values are None.

  Args:
    seconds: wall-clock time of the records.
    device_seconds: `seconds` multiplied by the number of devices.
    devices: the devices of the stage or run, such as "8 TPU v5e".
    images: images taken from the data, or pairs made.
    passes: images forward through the denoiser; a gradient counts as three.
    flops: operations of the updates, counted from their programs.
    trees_bytes: the bytes of weights and optimizer, if one device holds them
      all.
    peak_device_bytes: the most memory that a device held.
    peak_host_bytes: the most memory that the process of a host held.
    images_per_second: the median speed of the records.
    images_per_second_middle: the first and third quartile of the speeds.
    updates: the number of updates done; None for pairs.
    peak_flops: the most operations that the chips can do in `busy_seconds`, in
      bfloat16.
    bare_seconds: the time of the updates alone, from a benchmark on the same
      devices.
    compile_seconds: the part of `seconds` that was spent compiling.
    score_seconds: the part of `seconds` spent scoring weights, to keep the
      best.
    again_seconds: the part of `seconds` spent making pairs again on another
      machine.
    first_updates: for each start of the run, the seconds from the start of the
      command to the end of its first update.
    busy_seconds: the training seconds, without compiling, scoring and making
      pairs again; None for pairs.
  """

  seconds: Number | None = None
  device_seconds: Number | None = None
  devices: tuple[str, ...] = ()
  images: Number | None = None
  passes: Number | None = None
  flops: Number | None = None
  trees_bytes: Number | None = None
  peak_device_bytes: Number | None = None
  peak_host_bytes: Number | None = None
  images_per_second: Number | None = None
  images_per_second_middle: tuple[Number, Number] | None = None
  updates: int | None = None
  peak_flops: Number | None = None
  bare_seconds: Number | None = None
  compile_seconds: Number | None = None
  score_seconds: Number | None = None
  again_seconds: Number | None = None
  first_updates: tuple[Number, ...] = ()
  busy_seconds: Number | None = None

  @property
  def share_of_peak(self) -> Number | None:
    """The operations done, as a share of the peak of the chips in busy_seconds.

    The time between rounds is in no record; there, results are saved and sheets
    are drawn.
    """
    if self.flops is None or not self.peak_flops:
      return None
    return self.flops / self.peak_flops

  @property
  def lost(self) -> Number | None:
    """The share of busy_seconds that the updates did not take."""
    if self.bare_seconds is None or not self.busy_seconds:
      return None
    return 1 - self.bare_seconds / self.busy_seconds


def costs(
  run: Run, say: Callable[[str], None], notes: list[str]
) -> dict[str, Cost]:
  """The cost of each stage.

  Args:
    run: the run, as read from its workdir.
    say: receives a line for each slow step.
    notes: a list to which problems are added.
  """
  counted = _counted(run.experiment, say, notes) if run.experiment else {}
  result = {
    stage: _cost(logs, counted.get(stage, ()), run.bare.get(stage, ()))
    for stage, logs in run.stages.items()
  }
  elsewhere = [
    stage
    for stage, cost in result.items()
    if cost.devices
    and run.bare.get(stage)
    and not _timed_on(run.bare[stage], cost.devices)
  ]
  if elsewhere:
    notes.append(
      "The benchmark ran on other devices than these stages, so the time that"
      " they lost is not known:"
      f" {', '.join(elsewhere)}."
    )
  return result


def rows(run: Run) -> list[dict[str, Any]]:
  """Table rows with the recorded cost of each round, and of all rounds.

  Operations and the time of bare updates are only known for whole stages.
  """
  parts = {log.name: _cost([log], (), ()) for log in run.rounds if log.records}
  return [
    {
      "round": name,
      "devices": ", ".join(cost.devices),
      "updates": cost.updates,
      "images": _whole(cost.images),
      "passes": _whole(cost.passes or None),
      "seconds": _whole(cost.seconds),
      "compile seconds": _whole(cost.compile_seconds),
      "peak host MB": _whole(cost.peak_host_bytes, 10**6),
      "peak device MB": _whole(cost.peak_device_bytes, 10**6),
    }
    for name, cost in [*parts.items(), ("all", total(parts))]
  ]


def total(parts: Mapping[str, Cost]) -> Cost:
  """The cost of a whole run: sums, and the most memory of any stage."""
  each = list(parts.values())
  begun = [c for c in each if c.images is not None]
  trained = [c for c in begun if c.updates is not None]
  # If any stage that has begun lacks the value, the total is unknown.
  whole = {
    **dict.fromkeys(
      ("seconds", "device_seconds", "passes", "flops", "peak_flops"), begun
    ),
    **dict.fromkeys(("bare_seconds", "busy_seconds", "updates"), trained),
  }
  values: dict[str, Any] = {
    name: _sum(getattr(c, name) for c in stages)
    if all(getattr(c, name) is not None for c in stages)
    else None
    for name, stages in whole.items()
  }
  for name in ("images", *APART):
    values[name] = _sum(getattr(c, name) for c in each)
  for name in ("trees_bytes", "peak_device_bytes", "peak_host_bytes"):
    values[name] = _max(getattr(c, name) for c in each)
  devices = dict.fromkeys(d for c in each for d in c.devices)
  return Cost(
    devices=tuple(devices),
    first_updates=tuple(s for c in each for s in c.first_updates),
    **values,
  )


def _cost(
  logs: Sequence[RoundLog],
  counted: Sequence[tuple[Program, Number]],
  bares: Sequence[Bare],
) -> Cost:
  records = [
    {k: v for k, v in record.items() if k == "device_kind" or is_number(v)}
    for log in logs
    for record in log.records
  ]
  timed = [r for r in records if "seconds" in r]
  placed = [r for r in timed if "num_devices" in r]
  every = bool(timed) and len(placed) == len(timed)
  devices = dict.fromkeys(
    f"{r['num_devices']} {r.get('device_kind', 'devices')}"
    for r in records
    if "num_devices" in r
  )
  chips = [chip_of(str(r.get("device_kind"))) for r in placed]
  peaks = [
    _busy(r) * r["num_devices"] * chip.flops
    for r, chip in zip(placed, chips, strict=True)
    if chip is not None
  ]
  speeds = [s for log in logs for s in log.values("images_per_second") if s > 0]
  done = sum(log.done for log in logs)
  most = sum(log.most for log in logs if log.most is not None)
  updates = done if records and logs[0].unit == "updates" else None
  bare = _timed_on(bares, tuple(devices))
  flops = None
  if counted and most:
    flops = sum(each * program.runs for program, each in counted) * done / most
  return Cost(
    seconds=_sum(r["seconds"] for r in timed),
    device_seconds=(
      sum(r["seconds"] * r["num_devices"] for r in placed) if every else None
    ),
    devices=tuple(devices),
    images=_sum(map(_images, logs)),
    passes=_sum(max(log.values("passes"), default=None) for log in logs),
    flops=flops,
    trees_bytes=_max(program.state_bytes for program, _ in counted),
    peak_device_bytes=_max(r.get("peak_device_bytes") for r in records),
    peak_host_bytes=_max(r.get("peak_host_bytes") for r in records),
    images_per_second=statistics.median(speeds) if speeds else None,
    images_per_second_middle=_middle(speeds),
    updates=updates,
    peak_flops=sum(peaks) if every and len(peaks) == len(timed) else None,
    bare_seconds=updates * bare[0].seconds if bare and updates else None,
    first_updates=tuple(r[FIRST_UPDATE] for r in records if FIRST_UPDATE in r),
    busy_seconds=None if updates is None else _sum(map(_busy, timed)),
    **{name: _sum(r.get(name) for r in timed) for name in APART},
  )


def _images(log: RoundLog) -> Number | None:
  if log.unit == "pairs":
    return float(log.done) if log.records else None
  return max(log.values("images"), default=None)


def _middle(speeds: Sequence[Number]) -> tuple[Number, Number] | None:
  """The first and third quartile of the speeds; None for fewer than two."""
  if len(speeds) < 2:
    return None
  low, _, high = statistics.quantiles(speeds, n=4, method="inclusive")
  return low, high


def _counted(
  experiment: Experiment, say: Callable[[str], None], notes: list[str]
) -> dict[str, list[tuple[Program, Number]]]:
  """Counts the operations of one run of each compiled program, by stage."""
  result: dict[str, list[tuple[Program, Number]]] = {}
  try:
    for program in programs(experiment):
      if program.stage:
        say(f"counting {program.name}")
        flops = count_flops(program.trace().jaxpr)
        result.setdefault(program.stage, []).append((program, flops))
  except Exception as error:
    # The rest of the page does not need these counts.
    reason = " ".join(str(error).split())
    notes.append(f"Operations are not counted: {reason}.")
    return {}
  return result


def _timed_on(bares: Sequence[Bare], devices: tuple[str, ...]) -> list[Bare]:
  """The benchmarks of an update that were timed on exactly these devices."""
  return [bare for bare in bares if devices == (bare.devices,)]


def _busy(record: Mapping[str, Any]) -> Number:
  """The training seconds of a record, without compiling and scoring."""
  return record["seconds"] - sum(record.get(name, 0) for name in APART)


def _whole(value: Number | None, unit: int = 1) -> int | None:
  return None if value is None else round(value / unit)


def _sum(values: Iterable[Number | None]) -> Number | None:
  """The sum of the known values; None if no value is known."""
  known = [v for v in values if v is not None]
  return sum(known) if known else None


def _max(values: Iterable[Number | None]) -> Number | None:
  return max((v for v in values if v is not None), default=None)
