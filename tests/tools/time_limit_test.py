"""`diffdistill run` keeps its time limit; scripts stand in for its commands."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.children import wait_until

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = pathlib.Path(__file__).parent / "timed_commands.py"
WORDS = ["--config=cifar10:half_hour", "--config.seed=1"]
COMMANDS = ["check", "train", "evaluate", "benchmark", "report", "report"]
# Time limits in seconds to try, one after the other, until one is long enough.
LONGER = (1, 2, 4, 8, 16, 32, 64)


class Machine:
  """A folder in which pieces of a run are started, with one device."""

  def __init__(self, root, children):
    self.root, self.children = root, children
    self.state = {"units": {}, "fails": {}, "device": "h100"}
    self.set(matplotlib=True)

  def set(self, **fields):
    self.state.update(fields)
    # The file is replaced whole, because commands may read it at any moment.
    (self.root / "state.new").write_text(json.dumps(self.state))
    (self.root / "state.new").rename(self.root / "state.json")

  def start(self, seconds=0.0, reserve=1.0, **environment):
    return self.children.start(
      *(sys.executable, SCRIPT, "run", f"--words={json.dumps(WORDS)}"),
      *(f"--minutes={seconds / 60}", f"--reserve={reserve}"),
      cwd=self.root,
      env={
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SIM": str(self.root),
        **environment,
      },
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def end(self, process):
    """Waits for all processes of a piece; returns its status and output."""
    done = self.children.finish(process)
    return done.returncode, done.stdout

  def run(self, seconds=0.0, reserve=1.0, **environment):
    return self.end(self.start(seconds, reserve, **environment))

  def lines(self, name):
    path = self.root / name
    if not path.exists():
      return []
    return [json.loads(line) for line in path.read_text().splitlines()]

  def commands(self):
    return [call[0] for call in self.lines("calls.jsonl")]

  def wait_for(self, unit, process):
    wait_until(lambda: unit in self.lines("units.jsonl"), process)

  def time_is_over_in(self, name):
    """Runs longer and longer pieces until one ends in this command."""
    for seconds in LONGER:
      status, said = self.run(seconds + 1)
      assert status == 75
      if said.endswith(f"are over in {name}; the same command goes on\n"):
        return said
    raise AssertionError(said)


@pytest.fixture
def machine(tmp_path, children):
  return Machine(tmp_path, children)


def test_a_run_calls_its_commands_in_order(machine):
  status, said = machine.run()
  assert status == 0
  assert said.splitlines() == [
    *(f"diffdistill run: {name}" for name in COMMANDS[1:]),
    "diffdistill run: finished: results/cifar10_h100.json",
  ]
  out = "--out=results/cifar10_h100"
  assert machine.lines("calls.jsonl") == [
    ["check"],
    ["train", *WORDS, "--workdir=runs/a"],
    ["evaluate", "--workdir=runs/a"],
    ["benchmark", *WORDS, "--num_updates=10"],
    ["report", "--workdir=runs/a", f"{out}.json"],
    ["report", "--workdir=runs/a", f"{out}.html"],
  ]
  results = (machine.root / "results").glob("*")
  assert {path.name: path.read_text() for path in results} == {
    "cifar10_h100.json": "report of runs/a",
    "cifar10_h100.html": "report of runs/a",
    "cifar10_h100_curve.png": "curve",
    "cifar10_h100_compared.png": "sheet",
  }
  written = machine.root / "runs" / "a" / "benchmark_h100.json"
  assert json.loads(written.read_text()) == {"stages": []}


def test_each_device_is_benchmarked_once(machine):
  machine.set(matplotlib=False)
  assert machine.run()[0] == 0
  assert not list((machine.root / "results").glob("*_curve.png"))
  assert machine.run()[0] == 0
  assert machine.commands()[6:] == [c for c in COMMANDS if c != "benchmark"]
  shutil.rmtree(machine.root / "benchmarked")
  machine.set(device="h200")
  assert machine.run()[0] == 0
  assert machine.commands()[11:] == COMMANDS
  written = (machine.root / "runs" / "a").glob("benchmark_*.json")
  assert {path.stem for path in written} == {"benchmark_h100", "benchmark_h200"}


def test_a_piece_ends_in_time_and_the_next_repeats_no_unit(machine):
  machine.set(units={"train": 10**6, "evaluate": 2})
  machine.time_is_over_in("train")
  done = len(machine.lines("units.jsonl"))
  assert done > 0
  machine.set(units={"train": done + 20, "evaluate": 2})
  statuses = [machine.run(seconds + 1)[0] for seconds in (1, 600)]
  assert statuses[-1] == 0
  assert set(statuses) <= {0, 75}
  units = machine.lines("units.jsonl")
  assert len(units) == len(set(units)) == done + 20 + 2 + 1


def test_the_time_limit_is_for_all_commands_together(machine):
  machine.set(units={"train": 10, "evaluate": 10**6})
  machine.time_is_over_in("evaluate")
  assert machine.commands()[-2:] == ["train", "evaluate"]


@pytest.mark.parametrize("name", ["check", "train"])
def test_a_command_that_ignores_sigterm_is_killed_in_time(machine, name):
  machine.set(fails={name: "deaf"})
  # The command ignores SIGTERM and never ends by itself.
  machine.time_is_over_in({"check": "the check"}.get(name, name))
  assert machine.commands()[-1] == name
  assert not machine.children.alive()


def test_processes_that_a_command_leaves_are_killed(machine):
  machine.set(fails={"report": "leaves a process"})
  assert machine.run()[0] == 0
  assert not machine.children.alive()


@pytest.mark.parametrize(
  ("fails", "expected", "message"),
  [
    (75, 75, "diffdistill: train was told to leave; the same command goes on"),
    (70, 70, "diffdistill: data/train.npz does not exist"),
    (1, 1, "diffdistill: data/train.npz does not exist"),
    (2, 2, "diffdistill: data/train.npz does not exist"),
    ("killed", 70, "diffdistill: train was killed; the same command goes on"),
    (134, 70, "train died with status 134; the same command goes on"),
  ],
)
def test_each_exit_status_of_a_command_has_its_message(
  machine, fails, expected, message
):
  machine.set(fails={"train": fails})
  status, said = machine.run()
  assert status == expected
  assert said.splitlines()[-1].endswith(message)
  assert machine.commands() == ["check", "train"]


@pytest.mark.parametrize(
  ("number", "status"),
  [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)],
)
def test_a_signal_ends_the_command_and_then_the_piece(machine, number, status):
  machine.set(units={"train": 3}, hold="train.2")
  process = machine.start()
  machine.wait_for("train.1", process)
  process.send_signal(number)
  ended, said = machine.end(process)
  assert ended == status
  assert said.endswith("told to leave in train; the same command goes on\n")
  assert not machine.children.alive()


def test_a_second_interrupt_ends_the_run_at_once(machine):
  machine.set(fails={"train": "deaf"})
  process = machine.start(reserve=600)
  wait_until(lambda: "train" in machine.commands(), process)
  process.send_signal(signal.SIGINT)
  # For a moment the run takes a second signal for a copy of the first one.
  time.sleep(0.7)
  process.send_signal(signal.SIGINT)
  assert machine.end(process)[0] == 130
  assert not machine.children.alive()


def test_an_interrupted_benchmark_leaves_no_file(machine):
  machine.set(units={"benchmark": 3}, hold="benchmark.2")
  process = machine.start()
  machine.wait_for("benchmark.1", process)
  process.send_signal(signal.SIGTERM)
  status, said = machine.end(process)
  assert status == 75, said
  assert not list((machine.root / "runs" / "a").glob("benchmark*"))


def test_no_piece_starts_while_a_killed_one_s_command_runs(machine):
  machine.set(units={"train": 2}, hold="train.1")
  process = machine.start()
  machine.wait_for("train.0", process)
  process.kill()
  # Wait for the parent only: its child still lives and holds the pipe.
  process.wait()
  status, said = machine.run()
  assert status == 1
  assert "something is at work on runs/a; wait for it" in said
  machine.set(hold=None)
  machine.end(process)
  assert machine.run()[0] == 0


def test_a_killed_run_repeats_no_finished_unit(machine):
  machine.set(units={"train": 4, "evaluate": 4, "benchmark": 3})
  moments = random.Random(0)
  for _ in range(4):
    process = machine.start()
    # Kill at a random moment, in whichever command.
    time.sleep(moments.uniform(0.3, 1.5))
    process.send_signal(moments.choice([signal.SIGTERM, signal.SIGKILL]))
    # Wait for its child too, which holds the pipe.
    machine.end(process)
  status, said = machine.run()
  assert status == 0, said
  units = machine.lines("units.jsonl")
  assert len(units) == len(set(units)) == 11
  assert len(list((machine.root / "results").iterdir())) == 4


@pytest.mark.parametrize(
  ("flags", "status", "message"),
  [
    (("--mintues=3",), 2, "--mintues is no flag of run; did you mean --minut"),
    (("--multihost",), 2, "run does not read --multihost"),
    (("--minutes=ten",), 2, "--minutes is 'ten'; pass a number"),
    (("--reserve=0",), 2, "--reserve is 0; pass 1"),
    (("--minutes=1",), 2, "--minutes is 1, which is no more than --reserve=60"),
  ],
)
def test_bad_usage_is_refused(refuse, tmp_path, flags, status, message):
  line = refuse(
    status,
    *("run", "--config=cifar10:half_hour"),
    f"--workdir={tmp_path / 'run'}",
    *flags,
  )
  assert message in line
  assert not list(tmp_path.iterdir())
