"""Reports how a run goes: metrics.jsonl, a progress line, another writer."""

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from diffdistill.arrays import Metrics
from diffdistill.system import hosts
from diffdistill.training.records import Appended, read_records
from diffdistill.training.writers import NoWriter, Writer

SECONDS_BETWEEN_LINES = 30.0
# These fields of a record hold seconds without training: compiling, scoring,
# and remaking pairs. The record's field "seconds" includes them.
APART = ("compile_seconds", "score_seconds", "again_seconds")
# The seconds from the start of a command to the end of its first update.
FIRST_UPDATE = "first_update_seconds"
# A round that is left in its first updates records these fields.
WAITED = ("compile_seconds", FIRST_UPDATE)


class Work(NamedTuple):
  """The work that is still to be done.

  It is the number of images to train on, and the seconds of rounds that the
  clock ends.
  """

  images: int
  seconds: float = 0.0

  def time(self, speed: float) -> float:
    """Estimates the seconds of this work at a speed in images per second."""
    return self.seconds + (self.images / speed if self.images else 0.0)


class Report:
  """The reports of one run; only the first process writes.

  Args:
    workdir: the folder of `metrics.jsonl`, which has one record for each
      report.
    total: the work of the whole run.
    writer: opens one more writer of the numbers, when the first round starts.
    began: the time.monotonic at which the command began; by default now.
  """

  def __init__(
    self,
    workdir: epath.Path,
    total: Work,
    writer: Callable[[], Writer] = NoWriter,
    began: float | None = None,
  ):
    self._active = hosts.is_first()
    self._records = Appended(workdir, time.monotonic)
    self._open = writer
    self._writer: Writer | None = None
    self._total = total
    self._last_line = 0.0
    self._began = time.monotonic() if began is None else began
    self._waits = True

  def first_update(self) -> float | None:
    """Returns the seconds from the start of the command to its first update.

    Call it after each update that compiled, and after pairs were made. Only the
    first call returns a number; the other calls return None.
    """
    first, self._waits = self._waits, False
    return round(time.monotonic() - self._began, 3) if first else None

  def start_round(self, name: str, step: int) -> None:
    """Removes the records of this round after update `step`.

    A killed run may have recorded updates after its newest checkpoint. These
    updates are done again, and recorded again.
    """
    hosts.on_first(lambda: self._forget(name, step))

  def _opened(self) -> Writer:
    """The writer. It is opened once, and only if the run has a round to do."""
    if self._writer is None:
      self._writer = self._open()
    return self._writer

  def _forget(self, name: str, step: int) -> None:
    self._opened()

    def wanted(record: Mapping[str, Any]) -> bool:
      return record["round"] != name or record["step"] <= step

    self._records.keep(wanted, self.say)

  def write(self, name: str, step: int, values: Mapping[str, Any]) -> None:
    """Appends one record: a round's name, its step and its values."""
    hosts.on_first(lambda: self._append(name, step, values))

  def _append(self, name: str, step: int, values: Mapping[str, Any]) -> None:
    record = {"round": name, "step": step, **values, **_machine()}
    self._records.append(record)
    scalars = {k: v for k, v in values.items() if isinstance(v, int | float)}
    self._opened().write(name, step, scalars)

  def progress(
    self,
    name: str,
    step: int,
    num_updates: int | None,
    speed: float,
    left: Work,
  ) -> None:
    """Prints one line: the update, the speed and the time left.

    Args:
      name: the name of the round.
      step: how many updates are done.
      num_updates: the length of the round; None until it is known.
      speed: the speed in images per second.
      left: the work left in the whole run.
    """
    now = time.monotonic()
    terminal = sys.stderr.isatty()
    done = step == num_updates
    due = terminal or done or now - self._last_line >= SECONDS_BETWEEN_LINES
    if not self._active or not due:
      return
    self._last_line = now
    # The speed is 0 while only the first update is done, because that update
    # compiles.
    time_left = duration(left.time(speed)) if speed else "?"
    pace = speed or 1.0
    # A round that became slower may have more left than was planned in all.
    share = max(1 - left.time(pace) / max(self._total.time(pace), 1e-9), 0.0)
    line = (
      f"{name:<16} {step:>7}/{num_updates or '?'}  {speed:>8.0f} images/s"
      f"  {time_left:>8} left  {100 * share:3.0f} %"
    )
    end = "\r" if terminal and not done else "\n"
    print(line, end=end, file=sys.stderr, flush=True)

  def say(self, message: str) -> None:
    """Prints a message for the person who watches the run."""
    if self._active:
      print(message, file=sys.stderr, flush=True)

  def flush(self) -> None:
    """Writes the records that are not written yet."""
    hosts.on_first(self._records.flush)

  def close(self) -> None:
    """Writes all records, and closes the writer."""
    hosts.on_first(self._close)

  def __enter__(self) -> "Report":
    return self

  def __exit__(self, kind, error, traceback) -> None:
    if error is None:
      self.close()
    elif self._active:
      # The first error matters more than an error of this write. The other
      # processes may have ended, so do not wait for them.
      with contextlib.suppress(Exception):
        self._records.flush()

  def _close(self) -> None:
    self._records.flush()
    if self._writer is not None:
      self._writer.close()


def costs(
  workdir: epath.Path, say: Callable[[str], None]
) -> dict[str, tuple[int | float, float]]:
  """Reads the recorded cost of each round: (denoiser passes, seconds), by name.

  Args:
    workdir: the folder of the run.
    say: is called with a message about damaged records, which are not counted.
  """
  result: dict[str, tuple[int | float, float]] = {}
  records = read_records(workdir)
  if records.warning:
    say(records.warning)
  for _, record in records.good:
    passes, seconds = result.get(record["round"], (0, 0.0))
    result[record["round"]] = (
      max(passes, record.get("passes") or 0),
      seconds + (record.get("seconds") or 0.0),
    )
  return result


class Meter:
  """Measures the metrics and the speed of a round since its last report.

  Args:
    batch_size: how many images an update has.
    begun: the value of time.monotonic at which the round began.
  """

  def __init__(self, batch_size: int, begun: float):
    self._batch_size = batch_size
    self._records: list[Metrics] = []
    self._updates = 0
    self._start = 0.0
    self._compiling = 0.0
    self._first_update: float | None = None
    self._last_read = begun

  def add(self, metrics: Metrics, updates: int = 1) -> None:
    """Adds the metrics of one call of some updates; they stay on the device."""
    self._updates += updates
    self._records.append(metrics)

  def compiled(self, seconds: float, first_update: float | None = None) -> None:
    """Notes that the last calls took these seconds because they compiled.

    The means of the metrics include these calls, but the speed does not.

    Args:
      seconds: the seconds that the calls took.
      first_update: the seconds from the start of the command to its first
        update; None if this update is a later one.
    """
    self._compiling += seconds
    if first_update is not None:
      self._first_update = first_update
    self._updates, self._start = 0, time.monotonic()

  def skip(self, seconds: float) -> None:
    """Excludes some seconds from the speed; they have a record of their own."""
    self._start += seconds
    self._last_read += seconds

  def read(self) -> tuple[dict[str, float], float, float]:
    """Returns (means, images per second, seconds since the last `read`).

    The seconds include compiling and saving. If anything compiled, the means
    have an entry for its seconds. If the first update of a command was among
    the updates, they have an entry for the seconds until its end.
    """
    values = means(jax.device_get(self._records))
    if self._compiling:
      values["compile_seconds"] = round(self._compiling, 3)
      self._compiling = 0.0
    if self._first_update is not None:
      values[FIRST_UPDATE] = self._first_update
      self._first_update = None
    now = time.monotonic()
    speed = self._updates * self._batch_size / max(now - self._start, 1e-9)
    seconds, self._last_read = now - self._last_read, now
    self._records, self._updates, self._start = [], 0, now
    return values, speed, round(seconds, 3)


def means(
  records: Sequence[Mapping[str, tuple[Any, Any]]],
) -> dict[str, float]:
  """Averages the metrics of some updates, given as (sum, count) on the host.

  `.../skipped` and `.../skipped_in_a_row` are running counts, so their last
  value is returned in place of a mean.
  """
  result: dict[str, float] = {}
  for name in {key for record in records for key in record}:
    pairs = [record[name] for record in records if name in record]
    if name.endswith(("/skipped", "/skipped_in_a_row")):
      result[name] = float(pairs[-1][0])
    else:
      total = sum(float(count) for _, count in pairs)
      result[name] = sum(float(value) for value, _ in pairs) / total
  return dict(sorted(result.items()))


def duration(seconds: float) -> str:
  """Writes seconds as a short text such as 2h05m, 3m20s or 7s."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}h{minutes:02d}m"
  return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def _machine() -> dict[str, Any]:
  """Describes the devices, and the peak memory of this process so far.

  A device's peak is left out if the platform does not report it, such as a CPU.
  """
  peaks = [
    (device.memory_stats() or {}).get("peak_bytes_in_use")
    for device in jax.local_devices()
  ]
  known = [peak for peak in peaks if peak is not None]
  # Linux counts this memory in kilobytes, a Mac counts it in bytes.
  unit = 1 if sys.platform == "darwin" else 1024
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return {
    "num_devices": jax.device_count(),
    "device_kind": jax.devices()[0].device_kind,
    "peak_host_bytes": usage.ru_maxrss * unit,
    **({"peak_device_bytes": max(known)} if known else {}),
  }
