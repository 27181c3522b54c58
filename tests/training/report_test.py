import functools
import json
import math
import resource
import sys
import types

import jax.numpy as jnp
import pytest
from etils import epath

from diffdistill.system import hosts
from diffdistill.training import records as training_records
from diffdistill.training import report
from diffdistill.training.report import (
  Meter,
  Report,
  Work,
  costs,
  duration,
  means,
)
from diffdistill.training.writers import NoWriter, open_writer


@pytest.fixture
def clock(monkeypatch):
  """A clock in place of time.monotonic(), which tests move by hand."""

  class Clock:
    now = 1000.0

    def monotonic(self):
      return self.now

  clock = Clock()
  monkeypatch.setattr(report, "time", clock)
  return clock


@pytest.fixture
def workdir(tmp_path):
  return epath.Path(tmp_path)


def pair(total, count):
  return jnp.float32(total), jnp.float32(count)


def records(workdir):
  """Reads the records of metrics.jsonl, without fields about the machine."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  machine = ("num_devices", "device_kind", "peak_host_bytes", "crc")
  return [
    {k: v for k, v in json.loads(line).items() if k not in machine}
    for line in lines
  ]


def test_a_record_names_the_devices_and_the_peak_memory(workdir):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  Report(workdir, Work(100)).write("teacher", 10, {})
  record = json.loads((workdir / "metrics.jsonl").read_text())
  assert (record["num_devices"], record["device_kind"]) == (8, "cpu")
  assert before <= record["peak_host_bytes"] < 2 * before
  assert "peak_device_bytes" not in record  # unknown on a CPU


def test_means_are_weighted_and_counters_are_the_last_value():
  updates = [
    {"a/loss": pair(6, 3), "a/skipped": pair(1, 1)},
    {"b/loss": pair(5, 1)},
    {"a/loss": pair(4, 1), "a/skipped": pair(2, 1)},
    {"a/skipped_in_a_row": pair(3, 1)},
    {"a/skipped_in_a_row": pair(0, 1)},
  ]
  assert means(updates) == {
    "a/loss": 2.5,
    "a/skipped": 2.0,
    "a/skipped_in_a_row": 0.0,
    "b/loss": 5.0,
  }
  assert means([]) == {}


@pytest.mark.parametrize(
  ("seconds", "words"),
  [
    (0.0, "0s"),
    (7.4, "7s"),
    (59.6, "1m00s"),
    (200.0, "3m20s"),
    (3599.7, "1h00m"),
    (7500.0, "2h05m"),
    (360000.0, "100h00m"),
  ],
)
def test_durations_are_written_briefly(seconds, words):
  assert duration(seconds) == words


def test_speed_leaves_out_the_compilation(clock):
  begun = clock.now
  clock.now += 3  # loading takes 3 seconds
  meter = Meter(10, begun)
  clock.now += 57
  meter.add({"a/loss": pair(2, 1)})
  meter.compiled(57.0, first_update=60.0)
  clock.now += 1
  meter.add({"a/loss": pair(4, 1)})
  clock.now += 1
  values, speed, seconds = meter.read()
  waited = {"compile_seconds": 57.0, "first_update_seconds": 60.0}
  assert values == {"a/loss": 3.0, **waited}
  assert speed == 5.0
  # The seconds of a round must include the compilation.
  assert seconds == 62
  clock.now += 1
  for _ in range(2):
    meter.add({"a/loss": pair(1, 1)})
  clock.now += 30
  meter.skip(30.0)
  clock.now += 1
  meter.add({"a/loss": pair(1, 1)})
  assert meter.read() == ({"a/loss": 1.0}, 15.0, 2.0)
  clock.now += 2
  for _ in range(4):
    meter.add({"a/loss": pair(1, 1)})
  assert meter.read() == ({"a/loss": 1.0}, 20.0, 2.0)


def test_each_record_is_a_line_of_json(workdir):
  log = Report(workdir, Work(100))
  log.write("halve/004", 10, {"student/loss": 0.5, "images": 80})
  log.write("halve/004", 20, {"student/loss": 0.25, "images": 160})
  log.close()
  assert records(workdir) == [
    {"round": "halve/004", "step": 10, "student/loss": 0.5, "images": 80},
    {"round": "halve/004", "step": 20, "student/loss": 0.25, "images": 160},
  ]


def test_a_resumed_round_drops_records_of_updates_made_again(workdir):
  log = Report(workdir, Work(100))
  for name in ("teacher", "halve/004"):
    for step in (10, 20, 30):
      log.write(name, step, {})
  log.start_round("halve/004", 20)
  log.write("halve/004", 30, {"again": True})
  steps = [(r["round"], r["step"], r.get("again")) for r in records(workdir)]
  assert steps == [
    *(("teacher", step, None) for step in (10, 20, 30)),
    *(("halve/004", step, None) for step in (10, 20)),
    ("halve/004", 30, True),
  ]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_that_was_cut_off_is_dropped_and_named(workdir, cut, capsys):
  log = Report(workdir, Work(100))
  log.write("teacher", 10, {"teacher/loss": 0.5})
  log.write("teacher", 20, {"teacher/loss": 0.25})
  path = workdir / "metrics.jsonl"
  path.write_text(path.read_text()[:-cut])
  log.start_round("teacher", 20)
  log.write("teacher", 30, {"teacher/loss": 0.125})
  # If only the newline is cut off, the record is still whole.
  expected = [10, 20, 30] if cut == 1 else [10, 30]
  assert [record["step"] for record in records(workdir)] == expected
  said = f"{path}: line 2 is damaged and skipped\n" if cut > 1 else ""
  assert capsys.readouterr().err == said


def test_costs_are_the_last_passes_and_the_sum_of_seconds(workdir):
  said = []
  assert costs(workdir, said.append) == {}
  log = Report(workdir, Work(100))
  log.write("teacher", 10, {"passes": 240, "seconds": 1.5})
  log.write("teacher", 20, {"passes": 480, "seconds": 0.5})
  log.write("teacher", 20, {"distance": 0.25})
  log.write("pairs", 40, {"passes": 160, "seconds": 2.0})
  # A killed process wrote this record at update 30. The update is done again,
  # so the seconds of this record do not count.
  log.write("teacher", 30, {"passes": 720, "seconds": 1.0})
  log.start_round("teacher", 20)
  log.write("teacher", 30, {"passes": 720, "seconds": 0.25})
  path = workdir / "metrics.jsonl"
  path.write_text(path.read_text() + '{"round": "teacher", "step": 40, "pas')
  passed = {"teacher": (720, 2.25), "pairs": (160, 2.0)}
  assert costs(workdir, said.append) == passed
  assert said == [f"{path}: line 6 is damaged and skipped"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_recorded_as_null(workdir, value):
  Report(workdir, Work(100)).write("teacher", 10, {"distance": value})
  assert records(workdir) == [
    {"round": "teacher", "step": 10, "distance": None}
  ]


def test_a_bucket_gets_the_same_records_without_appending(
  workdir, clock, monkeypatch
):
  monkeypatch.setattr(training_records, "in_bucket", lambda path: True)
  # Act like an object store, which cannot append to a file.
  opened = type(workdir).open

  def no_append(self, mode="r", **kwargs):
    assert "a" not in mode
    return opened(self, mode, **kwargs)

  monkeypatch.setattr(type(workdir), "open", no_append)
  log = Report(workdir, Work(100))
  log.write("teacher", 10, {"a": 1.0})
  log.write("teacher", 20, {"a": 2.0})
  # The file is written again at most every ten seconds.
  assert [record["step"] for record in records(workdir)] == [10]
  clock.now += 10
  log.write("teacher", 30, {"a": 2.0})
  log.write("teacher", 40, {"a": 2.0})
  assert [record["step"] for record in records(workdir)] == [10, 20, 30]
  # A checkpoint follows, or the round ends.
  log.flush()
  assert [record["step"] for record in records(workdir)] == [10, 20, 30, 40]
  # A run that goes on keeps the records up to its checkpoint.
  log.write("teacher", 50, {"a": 2.0})
  log.start_round("teacher", 40)
  log.write("teacher", 50, {"a": 2.0})
  log.close()
  steps = [record["step"] for record in records(workdir)]
  assert steps == [10, 20, 30, 40, 50]
  assert [path.name for path in workdir.iterdir()] == ["metrics.jsonl"]


def test_an_error_loses_no_records_in_a_bucket(workdir, clock, monkeypatch):
  monkeypatch.setattr(training_records, "in_bucket", lambda path: True)

  def fail():
    with Report(workdir, Work(100)) as log:
      for step in (10, 20):
        log.write("teacher", step, {"a": 1.0})
      raise KeyError("an error of the training")

  with pytest.raises(KeyError):
    fail()
  assert [record["step"] for record in records(workdir)] == [10, 20]


def test_starting_the_first_round_writes_no_records(workdir):
  Report(workdir, Work(100)).start_round("teacher", 0)
  assert not (workdir / "metrics.jsonl").exists()


def test_the_progress_line_shows_speed_time_and_share(workdir, clock, capsys):
  log = Report(workdir, Work(1000))
  log.progress("halve/004", 20, 50, 12.5, Work(600))
  line = capsys.readouterr().err
  assert " ".join(line.split()) == ("halve/004 20/50 12 images/s 48s left 40 %")
  assert line.endswith("\n")
  # Without a terminal, a progress line is printed every 30 seconds, and one at
  # the end.
  clock.now += 29
  log.progress("halve/004", 30, 50, 12.5, Work(500))
  assert capsys.readouterr().err == ""
  clock.now += 2
  log.progress("halve/004", 40, 50, 12.5, Work(400))
  log.progress("halve/004", 50, 50, 12.5, Work(0))
  lines = capsys.readouterr().err.splitlines()
  assert [line.split()[1] for line in lines] == ["40/50", "50/50"]
  assert lines[-1].split()[-4:] == ["0s", "left", "100", "%"]


def test_the_progress_line_of_a_timed_round_shows_seconds_left(workdir, capsys):
  log = Report(workdir, Work(1000, 60.0))
  log.progress("teacher", 20, None, 10.0, Work(500, 30.0))
  line = capsys.readouterr().err
  assert " ".join(line.split()) == "teacher 20/? 10 images/s 1m20s left 50 %"


def test_a_run_that_becomes_slower_shows_no_negative_share(workdir, capsys):
  log = Report(workdir, Work(0, 60.0))
  log.progress("teacher", 20, 50, 10.0, Work(0, 70.0))
  line = capsys.readouterr().err
  assert " ".join(line.split()) == "teacher 20/50 10 images/s 1m10s left 0 %"


def test_on_a_terminal_a_round_rewrites_one_line(
  workdir, clock, capsys, monkeypatch
):
  monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
  log = Report(workdir, Work(1000))
  for step in (10, 20, 30):
    log.progress("teacher", step, 30, 12.5, Work(1000 - 10 * step))
  text = capsys.readouterr().err
  assert text.count("\r") == 2
  assert text.endswith("%\n")


def test_without_a_speed_the_time_left_is_unknown(workdir, capsys):
  Report(workdir, Work(1000)).progress("teacher", 1, 50, 0.0, Work(600))
  assert capsys.readouterr().err.split()[-4:] == ["?", "left", "40", "%"]


def test_only_the_first_process_writes(workdir, capsys, monkeypatch):
  monkeypatch.setattr(hosts, "is_first", lambda: False)
  monkeypatch.setattr(hosts, "on_first", lambda act: None)
  log = Report(workdir, Work(100))
  log.start_round("teacher", 0)
  log.write("teacher", 10, {"a": 1.0})
  log.progress("teacher", 10, 10, 1.0, Work(0))
  log.say("hello")
  log.close()
  assert capsys.readouterr().err == ""
  assert list(workdir.iterdir()) == []


def test_tensorboard_gets_all_numbers_of_a_record(workdir, monkeypatch):
  calls = []

  class SummaryWriter:
    def __init__(self, folder):
      calls.append(folder)

    def write_scalars(self, step, scalars):
      calls.append((step, scalars))

    def close(self):
      calls.append("closed")

  clu = types.ModuleType("clu")
  clu.metric_writers = types.SimpleNamespace(SummaryWriter=SummaryWriter)
  monkeypatch.setitem(sys.modules, "clu", clu)
  writer = functools.partial(open_writer, "if_installed", workdir, {}, print)
  log = Report(workdir, Work(100), writer)
  log.write("halve/004", 10, {"student/loss": 0.5, "images": 80, "note": "x"})
  log.close()
  assert calls == [
    str(workdir / "tensorboard"),
    (10, {"halve/004/student/loss": 0.5, "halve/004/images": 80}),
    "closed",
  ]
  assert len(records(workdir)) == 1


def test_a_writer_is_opened_when_the_first_round_starts(workdir):
  opened = []

  def writer():
    opened.append(NoWriter())
    return opened[-1]

  # A finished run starts no round.
  Report(workdir, Work(100), writer).close()
  assert opened == []
  log = Report(workdir, Work(100), writer)
  log.start_round("teacher", 0)
  log.write("teacher", 10, {"a": 1.0})
  log.start_round("halve/004", 0)
  log.close()
  assert len(opened) == 1
