"""What each stage of a run has cost, recorded or counted."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from diffdistill.evaluation.curves import Number
from diffdistill.planning.chips import chip_of
from diffdistill.planning.flops import count_flops
from diffdistill.planning.programs import Program, programs
from diffdistill.reporting.bare import Bare
from diffdistill.reporting.gather import RoundLog, Run
from diffdistill.run.experiment import Experiment
from diffdistill.training.report import APART


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
  """Of a stage, or of a run; None where that is not known.

  Args:
    seconds: by the clock, of what is recorded.
    device_seconds: times the devices, where every record names them.
    devices: what it ran on, such as "8 TPU v5e".
    images: taken from the data, or pairs made.
    passes: images forward through the denoiser, a gradient counting three.
    flops: of its updates, as their programs are.
    trees_bytes: of what one device keeps where nothing is split.
    peak_device_bytes: the most that a device held.
    peak_host_bytes: the most that a host's process held.
    images_per_second: the median of the records.
    images_per_second_middle: the first and third quartile of the records.
    updates: that were done; None of pairs.
    peak_flops: what its chips could have done in its busy time, in bfloat16.
    bare_seconds: what its updates take by themselves, as benchmarked on the
      same devices.
    compile_seconds: of them, that something was compiled in.
    score_seconds: of them, that weights were scored in, to keep the best.
    again_seconds: of them, that pairs were made again in, on another machine.
    busy_seconds: of all that has updates, what is none of these.
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
  busy_seconds: Number | None = None

  @property
  def share_of_peak(self) -> Number | None:
    """Of what its chips could have done in its busy time.

    What is between rounds, the saving of results and last sheets, is in no
    record.
    """
    if self.flops is None or not self.peak_flops:
      return None
    return self.flops / self.peak_flops

  @property
  def lost(self) -> Number | None:
    """The share of its busy time that was not its updates'.

    Of pairs it is not known.
    """
    if self.bare_seconds is None or not self.busy_seconds:
      return None
    return 1 - self.bare_seconds / self.busy_seconds


def costs(
  run: Run, say: Callable[[str], None], notes: list[str]
) -> dict[str, Cost]:
  """The cost of each stage.

  Args:
    run: the workdir.
    say: told what takes a while.
    notes: gets what could not be counted.
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
      "The benchmark is of other devices than these stages were trained on, so"
      f" what was lost of their time is not known: {', '.join(elsewhere)}."
    )
  return result


def total(parts: Mapping[str, Cost]) -> Cost:
  """Of a whole run: sums, and the most memory of any stage."""
  each = list(parts.values())
  begun = [c for c in each if c.images is not None]
  trained = [c for c in begun if c.updates is not None]
  # One stage without would make a part look like the whole.
  return Cost(
    seconds=_whole([c.seconds for c in begun]),
    device_seconds=_whole([c.device_seconds for c in begun]),
    devices=tuple(dict.fromkeys(d for c in each for d in c.devices)),
    images=_sum(c.images for c in each),
    passes=_whole([c.passes for c in begun]),
    flops=_whole([c.flops for c in begun]),
    trees_bytes=_max(c.trees_bytes for c in each),
    peak_device_bytes=_max(c.peak_device_bytes for c in each),
    peak_host_bytes=_max(c.peak_host_bytes for c in each),
    updates=sum(c.updates or 0 for c in trained) if trained else None,
    peak_flops=_whole([c.peak_flops for c in begun]),
    bare_seconds=_whole([c.bare_seconds for c in trained]),
    compile_seconds=_sum(c.compile_seconds for c in each),
    score_seconds=_sum(c.score_seconds for c in each),
    again_seconds=_sum(c.again_seconds for c in each),
    busy_seconds=_whole([c.busy_seconds for c in trained]),
  )


def _cost(
  logs: Sequence[RoundLog],
  counted: Sequence[tuple[Program, Number]],
  bares: Sequence[Bare],
) -> Cost:
  records = [record for log in logs for record in log.records]
  timed = [r for r in records if _number(r, "seconds") is not None]
  on_devices = [
    r["seconds"] * r["num_devices"]
    for r in timed
    if _number(r, "num_devices") is not None
  ]
  devices = dict.fromkeys(
    f"{r['num_devices']} {r.get('device_kind', 'devices')}"
    for r in records
    if _number(r, "num_devices") is not None
  )
  chips = [chip_of(str(r.get("device_kind"))) for r in timed]
  peaks = [
    _busy(r) * r["num_devices"] * chip.flops
    for r, chip in zip(timed, chips, strict=True)
    if chip is not None and _number(r, "num_devices") is not None
  ]
  speeds = [s for log in logs for s in log.values("images_per_second") if s > 0]
  done = sum(log.done for log in logs)
  most = [log.most for log in logs if log.most is not None]
  apart = {name: _sum(_recorded(timed, name)) for name in APART}
  updates = done if records and logs[0].unit == "updates" else None
  # What it was measured on elsewhere says nothing of this.
  bare = _timed_on(bares, tuple(devices))
  return Cost(
    seconds=_sum(r["seconds"] for r in timed),
    device_seconds=(
      sum(on_devices) if timed and len(on_devices) == len(timed) else None
    ),
    devices=tuple(devices),
    images=_sum(
      float(log.done) if log.unit == "pairs" else max(log.values("images"))
      for log in logs
      if (log.unit == "pairs" and log.records) or log.values("images")
    ),
    passes=_sum(
      max(log.values("passes")) for log in logs if log.values("passes")
    ),
    flops=(
      sum(each * program.runs for program, each in counted) * (done / sum(most))
      if counted and sum(most)
      else None
    ),
    trees_bytes=_max(program.state_bytes for program, _ in counted),
    peak_device_bytes=_max(_recorded(records, "peak_device_bytes")),
    peak_host_bytes=_max(_recorded(records, "peak_host_bytes")),
    images_per_second=statistics.median(speeds) if speeds else None,
    images_per_second_middle=_middle(speeds),
    updates=updates,
    peak_flops=sum(peaks) if timed and len(peaks) == len(timed) else None,
    bare_seconds=updates * bare[0].seconds if bare and updates else None,
    **apart,
    busy_seconds=None if updates is None else _sum(map(_busy, timed)),
  )


def _middle(speeds: Sequence[Number]) -> tuple[Number, Number] | None:
  """The first and the third quartile; None of a single speed or of none."""
  if len(speeds) < 2:
    return None
  low, _, high = statistics.quantiles(speeds, n=4, method="inclusive")
  return low, high


def _counted(
  experiment: Experiment, say: Callable[[str], None], notes: list[str]
) -> dict[str, list[tuple[Program, Number]]]:
  """The programs of each stage with the operations of one run of each."""
  result: dict[str, list[tuple[Program, Number]]] = {}
  try:
    for program in programs(experiment):
      if program.stage:
        say(f"counting {program.name}")
        flops = count_flops(program.trace().jaxpr)
        result.setdefault(program.stage, []).append((program, flops))
  except Exception as error:
    # Nothing else of the page needs them.
    reason = " ".join(str(error).split())
    notes.append(f"Operations are not counted: {reason}.")
    return {}
  return result


def _timed_on(bares: Sequence[Bare], devices: tuple[str, ...]) -> list[Bare]:
  """Those of the updates that were timed on these devices and no others."""
  return [bare for bare in bares if devices == (bare.devices,)]


def _busy(record: Mapping) -> Number:
  """Its seconds, but for those that were no training."""
  return record["seconds"] - (
    _sum(_number(record, name) for name in APART) or 0
  )


def _recorded(records: Iterable[Mapping], key: str) -> list[Number | None]:
  return [_number(record, key) for record in records]


def _number(record: Mapping, key: str) -> Number | None:
  value = record.get(key)
  if isinstance(value, bool) or not isinstance(value, int | float):
    return None
  return value


def _sum(values: Iterable[Number | None]) -> Number | None:
  known = [v for v in values if v is not None]
  return sum(known) if known else None


def _max(values: Iterable[Number | None]) -> Number | None:
  return max((v for v in values if v is not None), default=None)


def _whole(values: Sequence[Number | None]) -> Number | None:
  """Their sum, where all of them are known."""
  known = [v for v in values if v is not None]
  return sum(known) if known and len(known) == len(values) else None
