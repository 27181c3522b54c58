"""The cost of a stage is the sum of its records and of its programs."""

import jax
import pytest

from diffdistill.planning.flops import count_flops
from diffdistill.planning.programs import programs
from diffdistill.reporting.bare import Bare
from diffdistill.reporting.costs import Cost, _cost, costs, total
from diffdistill.reporting.gather import RoundLog, gather
from diffdistill.reporting.stages import facts
from diffdistill.run import from_config
from diffdistill.system.files import write_json


def spent(workdir):
  notes = []
  result = costs(gather(workdir, "run"), lambda line: None, notes)
  assert notes == []
  return result


def test_the_costs_of_records_add_up(write_run):
  machine = {
    "num_devices": 4,
    "device_kind": "TPU v5e",
    "peak_device_bytes": 3000,
    "peak_host_bytes": 5000,
  }
  cost = spent(write_run(more=machine))
  # There are three rounds with two records of 9 s each.
  assert cost["halve"].seconds == 54
  assert cost["halve"].device_seconds == 4 * 54
  assert cost["halve"].devices == ("4 TPU v5e",)
  assert cost["halve"].images == 3 * 8 * 18
  assert cost["halve"].passes == 3 * 24 * 18
  assert cost["halve"].peak_device_bytes == 3000
  assert cost["halve"].peak_host_bytes == 5000
  assert cost["halve"].images_per_second == 100
  whole = total(cost)
  assert whole.seconds == 54 + 18
  assert whole.device_seconds == 4 * (54 + 18)
  assert whole.images == 4 * 8 * 18


def test_operations_are_counted_for_the_updates_that_were_done(
  write_run, tiny_config
):
  run = from_config.build(tiny_config, devices=jax.devices()[:1])
  each = {
    p.stage: count_flops(p.trace().jaxpr) for p in programs(run) if p.stage
  }
  cost = spent(write_run("whole"))
  assert cost["teacher"].flops == pytest.approx(18 * each["teacher"])
  assert cost["halve"].flops == pytest.approx(54 * each["halve"])
  # A student's update takes more operations, because its teacher runs too.
  assert each["halve"] > each["teacher"] > 0
  part = spent(write_run("part", rounds={"teacher": 18, "halve/004": 6}))
  assert part["halve"].flops == pytest.approx(6 * each["halve"])
  assert total(part).flops == pytest.approx(
    18 * each["teacher"] + 6 * each["halve"]
  )


def test_only_the_pairs_that_are_made_are_counted(write_run, pairs_config):
  def edit(config):
    config.clear()
    config.update(pairs_config)

  workdir = write_run(
    rounds={"teacher": 6, "pairs": 24}, judged=False, edit=edit
  )
  cost = spent(workdir)
  run = from_config.build(pairs_config, devices=jax.devices()[:1])
  (program,) = [p for p in programs(run) if p.stage == "pairs"]
  # 24 of 48 pairs were made, in four steps and batches of eight.
  steps = 24 * 4 / 8
  flops = steps * count_flops(program.trace().jaxpr)
  assert cost["pairs"].flops == pytest.approx(flops)
  assert cost["pairs"].images == 24
  assert cost["student"].flops == 0
  assert cost["student"].seconds is None


MACHINE = {"num_devices": 4, "device_kind": "TPU v5e"}


def benchmarked(workdir, **seconds):
  stages = [
    {"stage": stage, "bare_seconds_per_update": each}
    for stage, each in seconds.items()
  ]
  written = {"devices": "4 TPU v5e", "stages": stages}
  write_json(workdir / "benchmark.json", written)
  return workdir


def test_peak_flops_count_all_chips_and_all_the_time(write_run):
  cost = spent(write_run(more=MACHINE))
  # The peak of each chip is 197 TFLOP/s; each round took 18 s.
  for stage, seconds in (("teacher", 18), ("halve", 54)):
    peak = seconds * 4 * 197e12
    assert cost[stage].peak_flops == pytest.approx(peak)
    assert cost[stage].share_of_peak == pytest.approx(cost[stage].flops / peak)
  whole = total(cost)
  assert whole.share_of_peak == pytest.approx(whole.flops / (72 * 4 * 197e12))
  for other in ({"device_kind": "cpu"}, {"device_kind": None}):
    cost = spent(write_run(str(other), more={**MACHINE, **other}))
    assert cost["halve"].flops > 0
    assert cost["halve"].share_of_peak is total(cost).share_of_peak is None


def test_compiling_and_scoring_count_neither_as_lost_nor_for_the_peak():
  record = {
    **{"round": "teacher", "step": 10, "seconds": 30.0, "images": 80},
    **{"num_devices": 1, "device_kind": "NVIDIA H100 80GB HBM3"},
  }
  logs = [
    RoundLog(
      name="teacher",
      stage="teacher",
      most=10,
      records=(
        {**record, "compile_seconds": 7.0, "score_seconds": 2.0},
        {**record, "again_seconds": 30.0, "first_update_seconds": 61.0},
        # A record may lack a value; the sum is of the known values.
        {**record, "compile_seconds": None, "first_update_seconds": 9.0},
      ),
    )
  ]
  bare = Bare(seconds=1.5, devices="1 NVIDIA H100 80GB HBM3")
  other = Bare(seconds=9.9, devices="8 TPU v5e")
  cost = _cost(logs, (), (other, bare))
  apart = (cost.compile_seconds, cost.score_seconds, cost.again_seconds)
  assert (cost.seconds, *apart) == (90, 7, 2, 30)
  assert cost.first_updates == total({"teacher": cost}).first_updates == (61, 9)
  shown = dict(facts(cost, "images"))
  assert shown["first update after each start"] == "1m01s, 9s"
  assert cost.lost == pytest.approx(1 - 15 / 51)
  assert cost.peak_flops == pytest.approx(51 * 989e12)


def test_busy_time_without_the_updates_is_lost(write_run):
  workdir = benchmarked(write_run(more=MACHINE), teacher=0.75, halve=0.9)
  cost = spent(workdir)
  # Every update took 1 s: the teacher did 18 updates, the students 54.
  assert cost["teacher"].lost == pytest.approx(1 - 18 * 0.75 / 18)
  assert cost["halve"].lost == pytest.approx(1 - 54 * 0.9 / 54)
  assert (cost["teacher"].updates, cost["halve"].updates) == (18, 54)
  whole = total(cost)
  assert whole.updates == 72
  assert whole.lost == pytest.approx(1 - (18 * 0.75 + 54 * 0.9) / 72)
  # No benchmark timed the second stage, so the total is unknown.
  cost = spent(benchmarked(workdir, teacher=0.75))
  assert cost["teacher"].lost == pytest.approx(0.25)
  assert cost["halve"].lost is total(cost).lost is None


def test_a_benchmark_on_other_devices_is_not_used(write_run):
  for more in ({**MACHINE, "num_devices": 8}, {}):
    workdir = benchmarked(write_run(str(more), more=more), teacher=0.75)
    notes = []
    cost = costs(gather(workdir, "run"), lambda line: None, notes)
    assert cost["teacher"].lost is None
    if more:
      (note,) = notes
      assert "on other devices than these stages" in note
      assert note.endswith("is not known: teacher.")


def test_the_total_of_lost_time_leaves_out_pairs(write_run, pairs_config):
  def edit(config):
    config.clear()
    config.update(pairs_config)

  workdir = write_run(
    rounds={"teacher": 6, "pairs": 48, "student/001": 18},
    judged=False,
    edit=edit,
    more=MACHINE,
  )
  cost = spent(benchmarked(workdir, teacher=1.5, student=0.5))
  assert cost["pairs"].updates is cost["pairs"].lost is None
  assert cost["pairs"].share_of_peak > 0
  # Each round took 18 s.
  whole = total(cost)
  assert whole.seconds == 54
  assert whole.updates == 24
  assert whole.lost == pytest.approx(1 - (6 * 1.5 + 18 * 0.5) / 36)


def test_a_value_that_is_not_recorded_is_unknown(write_run):
  workdir = write_run(more={"seconds": "?"})
  cost = spent(workdir)["halve"]
  assert cost.seconds is None
  assert cost.device_seconds is None
  assert cost.peak_device_bytes is None
  assert cost.devices == ()


def test_a_total_is_unknown_if_a_stage_lacks_the_value():
  known = Cost(
    seconds=10.0, device_seconds=80.0, images=64, passes=192, flops=5.0
  )
  part = total({"a": known, "b": Cost(images=64)})
  assert part == Cost(images=128)
  # A stage that has not begun has no cost, so the total is known.
  assert total({"a": known, "b": Cost(flops=0.0)}) == known


def test_a_program_that_cannot_be_counted_is_noted(write_run, monkeypatch):
  def broken(run):
    raise RuntimeError("no\nsuch thing")

  monkeypatch.setattr("diffdistill.reporting.costs.programs", broken)
  notes = []
  cost = costs(gather(write_run(), "run"), lambda line: None, notes)
  assert notes == ["Operations are not counted: no such thing."]
  assert cost["halve"].flops is None
  assert cost["halve"].seconds == 54
