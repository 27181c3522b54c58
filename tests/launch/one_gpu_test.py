"""one_gpu.sh, on stand-ins for JAX and for diffdistill's commands."""

import json
import pathlib
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.children import wait_until

ROOT = pathlib.Path(__file__).parents[2]
STANDINS = pathlib.Path(__file__).parent / "standins"
SCRIPT = ROOT / "launch" / "one_gpu.sh"
FEW_PACKAGES = runpy.run_path(str(ROOT / "tests" / "few_packages.py"))
# What the script runs as Python: the commands, pip, or its own few lines.
PYTHON = f"""#!/usr/bin/env bash
case "$1 ${{2:-}}" in
  "-m diffdistill")
    shift 2
    exec {sys.executable} -IS "$SIM/commands.py" "$@"
    ;;
  "-m pip")
    echo "$*" >> "$SIM/pip.log"
    for word; do
      case $word in --target=*) mkdir -p "${{word#*=}}" ;; esac
    done
    ! grep -q broken "${{@: -1}}"
    ;;
  *) PYTHONPATH=$SIM/modules exec {sys.executable} -S "$@" ;;
esac
"""
JAX = """
import json, os, time

with open(f"{os.environ['SIM']}/state.json") as file:
  DEVICES = json.load(file)["devices"]


class Device:
  def __init__(self, platform, kind, memory):
    self.platform, self.device_kind, self.memory = platform, kind, memory

  def memory_stats(self):
    return self.memory and {"bytes_limit": self.memory}


def devices():
  if not DEVICES:
    raise RuntimeError("no backend")
  while DEVICES == "hang":
    time.sleep(60)
  return [Device(*device) for device in DEVICES]
"""
# It waits less for a workdir that is at work, as one of some tests stays.
FLOCK = f"""#!/usr/bin/env bash
[ "$1" = --timeout=10 ] && exec {shutil.which("flock")} --timeout=0.2 "${{@:2}}"
"""
# A `timeout` that is told to end just as it has started its command: it ends
# alone. GNU's does so where the signal comes before it knows the command's id.
HASTY_TIMEOUT = f"""#!{sys.executable} -IS
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
os.setpgid(0, 0)
words = sys.argv[1:]
while words[0].startswith("--"):
  words.pop(0)
sys.exit(subprocess.run(words[1:]).returncode)
"""
# Seconds of pieces, one after the other, until one is long enough.
LONGER = (1, 2, 4, 8, 16, 32, 64)
H100 = ("gpu", "NVIDIA H100 80GB HBM3", 60 * 2**30)
PHASES = ["train", "evaluate", "benchmark", "report", "report"]


def write_program(path, text):
  path.write_text(text)
  path.chmod(0o755)


@pytest.fixture
def machine(new_cloud):
  """A checkout on a machine with one GPU."""
  cloud = new_cloud()
  (cloud.root / "launch").mkdir()
  shutil.copy(SCRIPT, cloud.root / "launch")
  commands = (STANDINS / "commands.py").read_text()
  (cloud.root / "commands.py").write_text(
    f"import sys\nsys.path[0:0] = [{str(cloud.root)!r}]\n{commands}"
  )
  write_program(cloud.root / "python", PYTHON)
  write_program(cloud.bin / "flock", FLOCK)
  (cloud.root / "modules").mkdir()
  for name in FEW_PACKAGES["PACKAGES"]:
    (cloud.root / "modules" / f"{name}.py").touch()
  (cloud.root / "modules" / "jax.py").write_text(JAX)
  cloud.set(devices=[H100])
  return cloud


def start(machine, *flags, **extra):
  return machine.children.start(
    *("bash", "launch/one_gpu.sh", "--workdir=runs/a", *flags),
    cwd=machine.root,
    env=machine.environment(
      PYTHON=str(machine.root / "python"), HOME="/nowhere", **extra
    ),
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def end(machine, process):
  """(status, what it said) of a piece, all of whose processes have ended."""
  done = machine.children.finish(process)
  return done.returncode, done.stdout


def run(machine, *flags, **extra):
  """(status, what it said)"""
  return end(machine, start(machine, *flags, **extra))


def phases(machine):
  return [call[0] for call in machine.lines("calls.jsonl")]


def results(machine):
  folder = machine.root / "results"
  return {path.name: path.read_text() for path in folder.glob("*")}


def wait_for(machine, unit, process):
  wait_until(lambda: unit in machine.lines("units.jsonl"), process)


def limited(machine, seconds, reserve=1):
  """(status, what it said) of a piece of so many seconds and the reserve."""
  minutes = (seconds + reserve) / 60
  return run(machine, f"--minutes={minutes:.4f}", f"--reserve={reserve}")


def ended_in(machine, phase):
  """What a piece said whose minutes were over in the phase.

  On a busy machine they may be over before it.
  """
  for seconds in LONGER:
    status, said = limited(machine, seconds)
    assert status == 75
    if said.endswith(
      f" minutes are over in {phase}; the same command goes on\n"
    ):
      return said
  raise AssertionError(said)


def test_a_run_goes_through_its_phases(machine):
  field = "--config.stages.teacher.batch_size=8"
  status, said = run(machine, field)
  assert status == 0
  assert said.splitlines() == [
    "one_gpu.sh: NVIDIA H100 80GB HBM3, 60.0 GiB for JAX",
    *(f"one_gpu.sh: {phase}" for phase in PHASES),
    "one_gpu.sh: finished: results/cifar10_nvidia_h100_80gb_hbm3.json",
  ]
  recipe = ["--config=configs/cifar10.py:half_hour", field]
  out = "--out=results/cifar10_nvidia_h100_80gb_hbm3"
  assert machine.lines("calls.jsonl") == [
    ["train", *recipe, "--workdir=runs/a"],
    ["evaluate", "--workdir=runs/a"],
    ["benchmark", *recipe, "--num_updates=10"],
    ["report", "--workdir=runs/a", f"{out}.json"],
    ["report", "--workdir=runs/a", f"{out}.html"],
  ]
  assert results(machine) == {
    "cifar10_nvidia_h100_80gb_hbm3.json": "report of runs/a",
    "cifar10_nvidia_h100_80gb_hbm3.html": "report of runs/a",
    "cifar10_nvidia_h100_80gb_hbm3_curve.png": "curve",
    "cifar10_nvidia_h100_80gb_hbm3_compared.png": "sheet",
  }
  written = machine.root / "runs" / "a" / "benchmark_nvidia_h100_80gb_hbm3.json"
  assert json.loads(written.read_text()) == {"stages": []}


def test_what_is_finished_is_not_measured_again(machine):
  assert run(machine)[0] == 0
  assert run(machine)[0] == 0
  assert phases(machine)[5:] == [p for p in PHASES if p != "benchmark"]
  assert len(machine.lines("units.jsonl")) == 3


def test_another_device_is_measured_for_itself(machine):
  assert run(machine)[0] == 0
  shutil.rmtree(machine.root / "benchmarked")
  machine.set(devices=[("gpu", "NVIDIA H200", None)])
  assert run(machine)[0] == 0
  assert phases(machine)[5:] == PHASES
  written = (machine.root / "runs" / "a").glob("benchmark_*.json")
  assert sorted(path.stem for path in written) == [
    "benchmark_nvidia_h100_80gb_hbm3",
    "benchmark_nvidia_h200",
  ]


def test_another_recipe_and_place_and_a_cpu(machine):
  machine.set(devices=[("cpu", "cpu", None)], matplotlib=False)
  status, said = run(
    machine, "--cpu", "--results=out", "--config=configs/digits.py:all"
  )
  assert status == 0
  assert said.startswith("one_gpu.sh: cpu\n")
  assert {path.name for path in (machine.root / "out").iterdir()} == {
    "digits_cpu.json",
    "digits_cpu.html",
    "digits_cpu_compared.png",
  }


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (("--workdir=",), "'--workdir=' is no flag; the head of "),
    (("--mintues=3",), "'--mintues=3' is no flag; the head of "),
    (("train",), "'train' is no flag; the head of "),
    (("--minutes=ten",), "--minutes is 'ten'; pass a number, or 0"),
    (("--reserve=0",), "--reserve is '0'; pass whole seconds, 1 or more"),
    (("--minutes=1",), "--minutes=1 is no more than --reserve=60 seconds"),
    (("--minutes=0.00001", "--reserve=1"), "--minutes=0.00001 is no more"),
  ],
)
def test_bad_usage_is_refused(machine, flags, message):
  status, said = run(machine, *flags)
  assert status == 2
  assert said.startswith(f"one_gpu.sh: {message}")
  assert said.count("\n") == 1
  assert not phases(machine)


def test_a_workdir_is_needed(machine):
  done = machine.run("bash", machine.root / "launch" / "one_gpu.sh")
  assert done.returncode == 2
  assert done.stderr == "one_gpu.sh: --workdir is missing; pass a folder\n"


@pytest.mark.parametrize(
  ("devices", "message"),
  [
    ([("cpu", "cpu", None)], "JAX finds no GPU or TPU; install its plugin"),
    ([H100, H100], "JAX finds 2 devices; show it one"),
    ([], "JAX finds no device (no backend)"),
  ],
)
def test_a_machine_without_one_accelerator_is_refused(
  machine, devices, message
):
  machine.set(devices=devices)
  status, said = run(machine)
  assert status == 1
  assert said.startswith(f"one_gpu.sh: {message}")
  assert said.count("\n") == 1
  assert not phases(machine)


def test_a_machine_without_packages_is_refused(machine):
  for name in ("grain", "jax"):
    (machine.root / "modules" / f"{name}.py").unlink()
  status, said = run(machine)
  assert status == 1
  assert " lacks jax, grain; pass --wheels" in said
  assert said.count("\n") == 1


def test_wheels_are_installed_once(machine):
  wheels = machine.root / "wheels"
  flag = f"--wheels={wheels}"
  wheels.mkdir()
  status, said = run(machine, flag)
  assert status == 1
  assert f"there are no wheels in {wheels}" in said
  wheel = wheels / "grain-1-py3-none-any.whl"
  wheel.write_text("broken")
  status, said = run(machine, flag)
  assert status == 1
  assert f"the wheels in {wheels} cannot be installed, as pip says" in said
  (machine.root / "pip.log").unlink()
  wheel.write_text("whole")
  for _ in range(2):
    assert run(machine, flag, PYTHONPATH="/other")[0] == 0
  (installed,) = (machine.root / "pip.log").read_text().splitlines()
  packages = machine.root / "runs" / "a.packages"
  assert installed.split()[1:] == [
    *("pip", "install", "--quiet", "--no-index", "--no-deps"),
    "--target=runs/a.packages",
    str(wheel),
  ]
  environment = machine.state["environment"]
  assert environment["PYTHONPATH"] == f"{packages}:/other"
  # What else is there is another machine's.
  wheel.write_text("newer")
  assert run(machine, flag)[0] == 0
  assert len((machine.root / "pip.log").read_text().splitlines()) == 2


def test_what_is_compiled_is_shared(machine):
  assert run(machine)[0] == 0
  name = "JAX_COMPILATION_CACHE_DIR"
  environment = machine.state["environment"]
  assert environment[name] == "/nowhere/.cache/diffdistill/xla"
  assert "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" in environment
  assert run(machine, XDG_CACHE_HOME="/c")[0] == 0
  assert machine.state["environment"][name] == "/c/diffdistill/xla"
  assert run(machine, **{name: "/mine"})[0] == 0
  assert machine.state["environment"][name] == "/mine"


def test_a_piece_ends_in_time_and_the_next_goes_on(machine):
  machine.set(units={"train": 10**6, "evaluate": 2})
  said = ended_in(machine, "train")
  assert re.search(r": \d\.\d+ minutes are over", said)
  done = len(machine.lines("units.jsonl"))
  assert done > 0
  machine.set(units={"train": done + 30, "evaluate": 2})
  for seconds in LONGER:
    status, _ = limited(machine, seconds)
    if status != 75:
      break
  assert status == 0
  units = machine.lines("units.jsonl")
  assert len(units) == len(set(units)) == done + 30 + 2 + 1


def test_the_limit_is_that_of_the_whole_piece(machine):
  machine.set(units={"train": 10, "evaluate": 10**6})
  ended_in(machine, "evaluate")
  assert phases(machine)[-2:] == ["train", "evaluate"]


def test_what_does_not_leave_is_killed_within_the_limit(machine):
  machine.set(fails={"train": "deaf"})
  # It would never end by itself.
  ended_in(machine, "train")


def test_a_device_that_hangs_is_left_within_the_limit(machine):
  machine.set(devices="hang")
  ended_in(machine, "check")
  assert not phases(machine)


def test_a_device_that_hangs_can_be_interrupted(machine):
  machine.set(devices="hang")
  process = start(machine)
  wait_until((machine.root / "runs" / "a.device").exists, process)
  process.send_signal(signal.SIGTERM)
  status, said = end(machine, process)
  assert status == 75
  assert said.endswith("told to leave in check; the same command goes on\n")


def test_a_command_that_its_timeout_leaves_behind_is_ended(machine):
  write_program(machine.bin / "timeout", HASTY_TIMEOUT)
  machine.set(units={"train": 2}, hold="train.1")
  process = start(machine)
  wait_for(machine, "train.0", process)
  process.send_signal(signal.SIGTERM)
  status, said = end(machine, process)
  assert status == 75
  assert said.endswith("told to leave in train; the same command goes on\n")
  assert not machine.children.alive()


@pytest.mark.parametrize(
  ("fails", "expected", "message"),
  [
    (75, 75, "train was told to leave; the same command goes on"),
    (70, 70, ""),
    (1, 1, ""),
    (2, 2, ""),
    ("refused", 1, ""),
    ("killed", 70, "train was killed; the same command goes on"),
    (134, 70, "train died with status 134; the same command goes on"),
  ],
)
def test_exit_statuses_say_what_to_do(machine, fails, expected, message):
  machine.set(fails={"train": fails})
  status, said = run(machine)
  assert status == expected
  assert message in said
  assert phases(machine) == ["train"]
  if fails == "refused":
    assert said.endswith("cifar10_train.npz does not exist; make it\n")


def test_a_benchmark_is_whole_or_not_there(machine):
  machine.set(fails={"benchmark": 70})
  assert run(machine)[0] == 70
  assert not list((machine.root / "runs" / "a").glob("benchmark*.json"))
  machine.set(units={"benchmark": 3}, hold="benchmark.2")
  process = start(machine)
  wait_for(machine, "benchmark.1", process)
  process.send_signal(signal.SIGTERM)
  status, said = end(machine, process)
  assert status == 75, said
  assert not list((machine.root / "runs" / "a").glob("benchmark*.json"))


@pytest.mark.parametrize(
  ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
@pytest.mark.parametrize("phase", ["train", "evaluate"])
def test_a_signal_is_passed_on(machine, number, status, phase):
  machine.set(units={phase: 3}, hold=f"{phase}.2")
  process = start(machine)
  wait_for(machine, f"{phase}.1", process)
  process.send_signal(number)
  ended, said = end(machine, process)
  assert ended == status
  assert said.endswith(f"told to leave in {phase}; the same command goes on\n")
  assert not machine.children.alive()


def test_what_a_killed_script_left_behind_is_waited_for(machine):
  machine.set(units={"train": 2}, hold="train.1")
  process = start(machine)
  wait_for(machine, "train.0", process)
  process.kill()
  # What lives holds the pipe too, and would be waited for.
  process.wait()
  status, said = run(machine)
  assert status == 1
  assert "something is at work on runs/a; wait for it" in said
  machine.set(hold=None)
  end(machine, process)
  assert run(machine)[0] == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_anywhere_goes_on(machine, seed):
  machine.set(units={"train": 4, "evaluate": 4, "benchmark": 3})
  moments = random.Random(seed)
  for _ in range(4):
    process = start(machine)
    # Anywhere, whatever it has come to by then.
    time.sleep(moments.uniform(0.05, 0.5))
    process.send_signal(moments.choice([signal.SIGTERM, signal.SIGKILL]))
    # What it ran, too: it holds the pipe.
    end(machine, process)
  status, said = run(machine)
  assert status == 0, said
  units = machine.lines("units.jsonl")
  assert len(units) == len(set(units)) == 11
  assert len(results(machine)) == 4


def test_its_head_says_which_wheels_the_test_of_doors_allows():
  text = SCRIPT.read_text()
  (named,) = re.findall(r"--dest=FOLDER \\\n#((?: \w+|\s)+)\n#\n", text)
  assert sorted(named.split()) == sorted(FEW_PACKAGES["BROUGHT"].split())
