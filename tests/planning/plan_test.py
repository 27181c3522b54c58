"""Tests plans for this machine's CPU devices, with chips of any memory."""

import copy
import dataclasses
import importlib
import json

import pytest

from diffdistill.planning import plan as planning
from diffdistill.planning.chips import CHIPS, GIB, chip_of
from diffdistill.planning.compiled import Compiled
from diffdistill.planning.flops import count_flops
from diffdistill.planning.hlo import Collective
from diffdistill.planning.programs import programs
from diffdistill.planning.remedies import applied, flags, remedies
from diffdistill.planning.roofline import roofline
from diffdistill.planning.topology import topology_of
from diffdistill.run import from_config

NO_CPU = CHIPS["v5e"]


@pytest.fixture
def plan(monkeypatch, tmp_path):
  """Returns a function that plans for cpu:8, as if devices had some memory."""
  said = []

  def make(config, memory=None):
    def topology(name):
      chip = None
      if memory is not None:
        chip = dataclasses.replace(NO_CPU, memory=memory + planning.CODE_BYTES)
      return dataclasses.replace(topology_of(name), chip=chip)

    monkeypatch.setattr(planning, "topology_of", topology)
    said.clear()
    return planning.make_plan(config, "cpu:8", tmp_path / "cache", said.append)

  make.said = said
  return make


@pytest.fixture
def wide(edited):
  """Returns the config of a teacher whose weights take most of its memory."""
  config = edited("stages.teacher.batch_size", 128)
  config["run"] = ("teacher",)
  config["model"]["network"]["width"] = 1024
  return config


def test_every_update_has_a_row_and_so_has_the_sampler(plan, small_config):
  made = plan(small_config)
  assert [row.program for row in made.rows] == [
    "classifier/classifier",
    "teacher/teacher",
    "halve/student",
    "sampler",
  ]
  assert made.mesh == {"data": 8, "fsdp": 1}
  assert all(row.flops > 0 and row.traffic_bytes > 0 for row in made.rows)
  # These fields are None, because the speed of a CPU is unknown.
  assert made.chip is made.chip_hours is made.rows[0].roofline is None
  assert planning.refusal(made) is None
  teacher, student = made.rows[1:3]
  # Each parameter takes 16 bytes: the teacher's weights, two moments and
  # average, or the student's weights, two moments and its frozen teacher. The
  # tolerance is for counters.
  assert teacher.state_bytes == pytest.approx(16 * teacher.trained, rel=0.02)
  assert student.state_bytes == pytest.approx(16 * student.trained, rel=0.02)
  # The gradient, of 4 bytes a parameter, is summed over all devices.
  assert teacher.collectives["all-reduce"]["bytes"] >= 4 * teacher.trained


def test_runs_are_the_updates_of_all_rounds(tiny_config):
  run = from_config.build(tiny_config)
  found = {program.name: program.runs for program in programs(run)}
  assert found["teacher/teacher"] == run.stages[0].num_updates
  # Halving has three rounds: from 8 steps to 4, to 2 and to 1.
  assert found["halve/student"] == 3 * run.stages[1].num_updates


def test_the_sampler_of_pairs_runs_once_for_each_batch_and_step(pairs_config):
  pairs = next(
    program
    for program in programs(from_config.build(pairs_config))
    if program.stage == "pairs"
  )
  assert pairs.runs == (32 + 16) * 4 / 8
  assert pairs.images == 8


def test_the_turns_of_a_cycle_share_the_updates(edited):
  config = edited("stages.halve.objective", {"kind": "moment_matching"})
  stage = config["stages"]["halve"]
  for field in ("start_steps", "long_rounds"):
    del stage[field]
  stage |= {"num_steps": (4, 2), "sampler": {"kind": "ancestral"}}
  found = {p.name: p.runs for p in programs(from_config.build(config))}
  assert found["halve/student"] == found["halve/auxiliary"]
  assert found["halve/student"] == stage["num_updates"]


def test_a_second_plan_compiles_nothing(plan, small_config):
  first = plan(small_config)
  assert any(line.startswith("compiling") for line in plan.said)
  assert plan(small_config) == first
  assert not plan.said


def test_chip_hours_are_runs_times_the_roofline(plan, small_config):
  made = plan(small_config, memory=GIB)
  for row in made.rows:
    seconds = row.roofline.seconds
    assert row.images_per_second == row.images / seconds
    assert row.chip_hours == pytest.approx(row.runs * seconds * 8 / 3600)
    limits = dataclasses.astuple(row.roofline)
    probable = row.runs * sum(limits) * 8 / 3600
    assert row.probable_chip_hours == pytest.approx(probable)
  assert made.chip_hours == sum(row.chip_hours for row in made.rows)
  assert made.probable_chip_hours > made.chip_hours
  text = planning.table(made)
  assert "a real run will probably take" in text
  assert "halve/student" in text
  assert "all-reduce" in text
  json.dumps(planning.as_json(made))


def test_chip_hours_by_the_clock_are_at_most_its_minutes(plan, edited):
  config = edited("stages.teacher.num_updates", 10**9)
  config["stages"]["teacher"]["minutes"] = 0.6
  made = {row.program: row for row in plan(config, 16 * GIB).rows}
  assert made["teacher/teacher"].chip_hours == pytest.approx(0.01 * 8)
  # Here the two updates end before the clock ends the stage.
  config["stages"]["teacher"]["num_updates"] = 2
  config["stages"]["teacher"]["optimizer"]["warmup"] = 2
  row = {row.program: row for row in plan(config, 16 * GIB).rows}[
    "teacher/teacher"
  ]
  assert row.chip_hours == pytest.approx(2 * row.roofline.seconds * 8 / 3600)


@pytest.mark.slow
def test_a_stage_that_does_not_fit_fits_with_its_remedy(plan, wide):
  roomy = plan(wide, memory=GIB)
  (row, _) = roomy.rows
  assert planning.refusal(roomy) is None
  # With this memory, each device can hold only a share of the weights.
  memory = row.memory_bytes - row.state_bytes / 4
  tight = plan(wide, memory=memory)
  over = tight.rows[0].over_bytes
  assert over == pytest.approx(row.memory_bytes - memory)
  remedy = tight.remedies["teacher"]
  assert f"{over / GIB:.2f} GiB more than" in planning.refusal(tight)
  assert flags(remedy) in planning.refusal(tight)
  mended = plan(applied(wide, remedy), memory=memory)
  assert planning.refusal(mended) is None


def test_a_program_can_be_refused_on_an_unknown_chip(plan, wide, monkeypatch):
  refused = Compiled(
    memory=GIB, refused=True, traffic=0.0, collectives={}, seconds=0.0
  )
  monkeypatch.setattr(planning, "compile_program", lambda *_: refused)
  made = plan(wide)
  assert not made.rows[0].fits
  assert "cpu:8 is too small" in planning.refusal(made)


def test_a_stage_that_no_remedy_mends_is_reported(plan, edited):
  tight = plan({**edited("seed", 0), "run": ("teacher",)}, memory=1.0)
  assert tight.remedies["teacher"] is None
  assert "pass a larger topology" in planning.refusal(tight)


def test_less_is_computed_again_if_half_of_each_chip_is_free(
  plan, small_config
):
  config = {**copy.deepcopy(small_config), "run": ("teacher",)}
  made = plan(config, memory=GIB)
  rows = [dataclasses.replace(row, memory_bytes=0.1 * GIB) for row in made.rows]
  roomy, narrow = (
    dataclasses.replace(NO_CPU, memory=2 * half * GIB) for half in (0.7, 0.3)
  )
  for remat, offered in (
    ("all", "dots"),
    (True, "dots"),
    ("dots", "none"),
    ("none", None),
  ):
    config["model"]["network"]["remat"] = remat
    for chip in (roomy, narrow, None):
      offer = planning._offer(rows, config, chip)
      expected = None
      if chip is roomy and offered:
        expected = {"model.network.remat": offered}
      assert offer == expected
      text = planning.table(dataclasses.replace(made, offer=offer))
      line = f"plan again with --config.model.network.remat={offered}, which"
      assert (line in text) == (expected is not None)


def test_the_milder_remedies_come_first(wide):
  config = applied(wide, {"model.network": {"kind": "unet", "remat": False}})
  found = list(remedies(config, "teacher", 64))
  assert found[:5] == [
    {"mesh.data": -1, "mesh.fsdp": 8},
    {"mesh.data": -1, "mesh.fsdp": 64},
    {"model.network.remat": "dots"},
    {"model.network.remat": "all"},
    {"stages.teacher.accumulate": 2},
  ]
  assert all(found.count(remedy) == 1 for remedy in found)
  assert "teacher_dtype" not in str(found)  # The stage has no teacher.


@pytest.mark.parametrize("name", ["imagenet64", "lsun", "cifar10", "digits"])
def test_the_command_line_accepts_every_remedy(name):
  module = importlib.import_module(f"diffdistill.configs.{name}")
  for recipe in module.RECIPES:
    config = module.get_config(recipe).lock()
    fields = json.loads(config.to_json_best_effort())
    for stage in config.run:
      for remedy in remedies(fields, stage, 8):
        for path, value in remedy.items():
          # This is how flags set fields of a locked config.
          with config.ignore_type():
            config.update_from_flattened_dict({path: value})


def test_guided_pairs_cost_one_more_pass(pairs_config):
  def flops(weight):
    config = copy.deepcopy(pairs_config)
    config["data"]["conditional"] = True
    config["model"]["label_dropout"] = 0.1
    config["guidance"] = {"weight": weight}
    run = from_config.build(config)
    (pairs,) = (p for p in programs(run) if p.stage == "pairs")
    return count_flops(pairs.trace().jaxpr)

  assert flops(1.0) == 2 * flops(0.0)


def test_the_roofline_is_the_slowest_of_three():
  chip = dataclasses.replace(
    NO_CPU, flops=100.0, memory_bandwidth=10.0, network_bandwidth=1.0
  )
  compiled = Compiled(
    memory=0.0,
    refused=False,
    traffic=30.0,
    collectives={"all-reduce": Collective(count=1.0, bytes=1.0, sent=2.0)},
    seconds=0.0,
  )
  found = roofline(400.0, compiled, chip)
  assert (found.compute, found.memory, found.network) == (4.0, 3.0, 2.0)
  assert found.seconds == 4.0
  assert found.bound == "compute"


def test_chips_are_found_by_jax_s_device_kind():
  assert chip_of("TPU v5 lite").name == "v5e"
  assert chip_of("NVIDIA H100 80GB HBM3").name == "h100"
  assert chip_of("cpu") is None


@pytest.mark.parametrize("name", ["v5e", "64", "cpu:8x8", "cpu:0", "cpu:64"])
def test_impossible_topologies_are_refused(name):
  with pytest.raises(ValueError, match="topology is"):
    topology_of(name)


def test_the_command_prints_a_table_or_json(
  run_cli, config_file, capsys, monkeypatch, tmp_path
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  arguments = ("plan", f"--config={config_file}", "--topology=cpu:8")
  assert run_cli(*arguments) == 0
  assert "halve/student" in capsys.readouterr().out
  assert run_cli(*arguments, "--json") == 0
  assert json.loads(capsys.readouterr().out)["fits"] is True
