"""Tests that runs of several processes survive kills, hangs and signals."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from etils import epath

from diffdistill.training import checkpoint
from diffdistill.training.sharding import Layout
from tests.children import PATIENCE, wait_until
from tests.forked import Forked

UPDATES, SAVED_AFTER = 14, 7
ROUNDS = ("teacher", "halve/002", "halve/001")


@pytest.fixture(scope="module")
def fork():
  """Starts one process of a command, with some devices and a log file."""
  with Forked() as start:
    yield start


class Job:
  """The processes of one command, numbered from 0 to hosts - 1.

  All processes except the first also get the arguments in `own`.
  """

  def __init__(self, fork, tmp_path, hosts, devices, *arguments, own=()):
    with socket.socket() as sock:
      sock.bind(("localhost", 0))
      port = sock.getsockname()[1]
    self.logs = [tmp_path / f"log.{i}" for i in range(hosts)]
    self.processes = []
    for i, log in enumerate(self.logs):
      log.unlink(missing_ok=True)
      where = (
        "--multihost",
        f"--coordinator=localhost:{port}",
        f"--num_processes={hosts}",
        f"--process_id={i}",
      )
      extra = (*where, *(own if i else ())) if hosts > 1 else ()
      self.processes.append(fork(log, devices, *arguments, *extra))

  def statuses(self):
    """Waits for the processes and returns their exit statuses."""
    for process in self.processes:
      process.join(PATIENCE)
      assert process.exitcode is not None, self.said(0)
    return [process.exitcode for process in self.processes]

  def send(self, number, to=0):
    os.kill(self.processes[to].pid, number)

  def said(self, process=0):
    """Returns the lines that a process printed, without the lines of Gloo."""
    lines = self.logs[process].read_text().splitlines()
    return [x for x in lines if "[Gloo]" not in x and "peer ranks" not in x]

  def until(self, true):
    """Waits until `true()` holds; fails if a process ends before that."""
    wait_until(true, *self.processes, said=self.said)


@pytest.fixture
def job(fork, tmp_path):
  def make(hosts, devices, *arguments, **keywords):
    return Job(fork, tmp_path, hosts, devices, *arguments, **keywords)

  return make


def updates_recorded(workdir):
  path = workdir / "metrics.jsonl"
  return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="module")
def config_of(tiny_config, write_config):
  """The function config_of(...) writes a config of two halvings.

  Its weights are split over the processes.

  The run records each update, so that tests know how far the run is. The
  learning rate is low, because Adam's first updates are nearly the sign of the
  gradient, which amplifies differences of rounding.
  """

  def make(*run, **fields):
    stages = {
      name: {
        **stage,
        "num_updates": UPDATES,
        "optimizer": {**stage["optimizer"], "learning_rate": 1e-3},
      }
      for name, stage in tiny_config["stages"].items()
    }
    stages["halve"]["start_steps"] = 4
    network = {"kind": "mlp", "width": 256, "depth": 1}
    config = {
      **tiny_config,
      "run": run or ("teacher", "halve"),
      "cadence": {"log": 1, "checkpoint": SAVED_AFTER},
      "mesh": {"data": 1, "fsdp": -1},
      "model": {**tiny_config["model"], "network": network},
      "stages": stages,
      **fields,
    }
    return write_config(config)

  return make


def products(workdir, mesh, rounds):
  """Loads all trees that the rounds keep, each as one float64 vector."""
  result = {}
  for name in rounds:
    round_dir = epath.Path(workdir / name)
    for product in sorted(checkpoint.product_names(round_dir)):
      tree = checkpoint.load_final(round_dir, product, Layout(mesh=mesh))
      leaves = [np.ravel(x) for x in jax.tree.leaves(jax.device_get(tree))]
      result[f"{name} {product}"] = np.concatenate(leaves).astype(np.float64)
  return result


def distances(workdir, other, mesh, rounds=ROUNDS):
  """Computes each tree's relative distance between two workdirs, by name."""
  ours, theirs = (products(w, mesh, rounds) for w in (workdir, other))
  assert ours.keys() == theirs.keys()
  return {
    name: np.linalg.norm(ours[name] - theirs[name])
    / np.linalg.norm(theirs[name])
    for name in theirs
  }


@pytest.fixture(scope="module")
def peace(fork, config_of, tmp_path_factory):
  """Trains in one process without interruptions, and gives the workdir."""
  folder = tmp_path_factory.mktemp("peace")
  config = f"--config={config_of()}"
  job = Job(fork, folder, 1, 8, "train", config, f"--workdir={folder}/run")
  assert job.statuses() == [0], job.said()
  return folder / "run"


@pytest.mark.slow
def test_a_run_killed_twice_continues_on_other_meshes(
  job, config_of, peace, tmp_path, mesh_of
):
  """The run begins on two processes of four devices each.

  It continues on one process of eight, and ends on two of two.
  """
  workdir = tmp_path / "run"
  command = ("train", f"--config={config_of()}", f"--workdir={workdir}")

  two = job(2, 4, *command)
  saved = workdir / "halve" / "002" / "checkpoints" / str(SAVED_AFTER)
  two.until(saved.exists)
  two.send(signal.SIGKILL, to=1)
  assert two.statuses() == [70, -9], two.said()
  assert two.said()[-1] == (
    "diffdistill: process 0 of 2: process 1 is lost; start all processes again:"
    " they go on from what they have saved"
  )

  one = job(1, 8, *command)
  one.until(lambda: updates_recorded(workdir) >= 2 * UPDATES + 10)
  one.send(signal.SIGKILL)
  assert one.statuses() == [-signal.SIGKILL]
  assert f"halve/002: goes on from update {SAVED_AFTER}" in one.said()
  assert not (workdir / "halve" / "001" / "final").exists()

  others = job(2, 2, *command)
  assert others.statuses() == [0, 0], others.said()
  assert others.said()[-2].startswith("halve/001")
  assert others.said(1) == []

  apart = distances(workdir, peace, mesh_of(1))
  print(f"relative distances: {apart}")
  assert set(apart) >= {"teacher teacher", "halve/001 student"}
  assert max(apart.values()) < 1e-5
  # The weights are equal up to rounding only, because sums over two processes
  # add the same numbers in another order.
  assert max(apart.values()) > 0
  # Each round must have left only its final result, and no record may be there
  # twice.
  for name in ROUNDS:
    made = {path.name for path in (workdir / name).iterdir()}
    assert made == {"final", "final.json"}
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert [(r["round"], r["step"]) for r in records] == [
    (name, step) for name in ROUNDS for step in range(1, UPDATES + 1)
  ]


@pytest.fixture(scope="module")
def long_run(tiny_config, pairs_config):
  """Makes the config of a run with images, pairs and halvings.

  It has 500 updates and 6 shards, so that it is not finished after twenty
  signals, even if a busy machine sends them late.
  """
  stages = pairs_config["stages"] | {"halve": tiny_config["stages"]["halve"]}
  stages |= {
    name: {**stages[name], "num_updates": 100}
    for name in ("teacher", "student", "halve")
  }
  return {
    **tiny_config,
    "run": ("teacher", "pairs", "student", "halve"),
    "cadence": {"log": 1, "checkpoint": 5},
    "stages": stages,
  }


@pytest.mark.long
def test_a_run_that_leaves_twenty_times_makes_the_same_weights(
  job, long_run, write_config, tmp_path, mesh_of
):
  """The weights are the same to the bit, although SIGTERM ends the run.

  SIGTERM comes at random moments: some time after a number of updates, or some
  time after the process began. Before the first update the run has nothing to
  save. Before the command listens to signals, SIGTERM kills the command.
  """
  config = f"--config={write_config(long_run)}"
  whole, told = tmp_path / "whole", tmp_path / "told"
  assert job(1, 1, "train", config, f"--workdir={whole}").statuses() == [0]
  draw = random.Random(4)
  statuses, places = [], []
  for number in range(20):
    life = job(1, 1, "train", config, f"--workdir={told}")
    if number % 4:
      goal = updates_recorded(told) + draw.randint(1, 5)
      life.until(lambda goal=goal: updates_recorded(told) >= goal)
      time.sleep(draw.uniform(0, 0.02))
    else:
      time.sleep(draw.uniform(0, 0.6))
    life.send(signal.SIGTERM)
    statuses += life.statuses()
    places += life.said()[-1:] if statuses[-1] == 75 else []
  life = job(1, 1, "train", config, f"--workdir={told}")
  assert life.statuses() == [0]
  print(f"statuses {statuses}, places {places}")
  assert set(statuses) <= {75, -signal.SIGTERM}
  assert statuses.count(75) >= 15
  assert all(
    re.fullmatch(
      r"diffdistill: (asked to leave [\w/]+ after (update \d+|a shard);"
      " the same command goes on from there|told to leave by SIGTERM; the same"
      " command goes on from the newest checkpoint)",
      place,
    )
    for place in places
  )
  rounds = ("teacher", "student/001", "halve/004", "halve/002", "halve/001")
  apart = distances(told, whole, mesh_of(1), rounds)
  assert len(apart) == 7
  assert set(apart.values()) == {0.0}
  for shard in (whole / "pairs" / "pairs").iterdir():
    other = told / "pairs" / "pairs" / shard.name
    assert shard.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_a_signal_to_one_process_makes_all_leave(
  job, config_of, peace, tmp_path, mesh_of
):
  workdir = tmp_path / "run"
  command = ("train", f"--config={config_of()}", f"--workdir={workdir}")
  two = job(2, 1, *command)
  two.until(lambda: updates_recorded(workdir) >= UPDATES + 3)
  two.send(signal.SIGTERM, to=1)
  assert two.statuses() == [75, 75], two.said()
  left = re.match(
    r"diffdistill: asked to leave halve/002 after update (\d+);", two.said()[-1]
  )
  step = int(left[1])
  # If all processes have the same message, only the first process prints it.
  assert two.said(1) == []
  kept = workdir / "halve" / "002" / "checkpoints"
  assert step == max(int(path.stem) for path in kept.iterdir())
  two = job(2, 1, *command)
  assert two.statuses() == [0, 0], two.said()
  assert f"halve/002: goes on from update {step}" in two.said()
  assert max(distances(workdir, peace, mesh_of(1)).values()) < 1e-5


@pytest.mark.slow
def test_a_command_saves_and_leaves_on_a_signal(children, config_of, tmp_path):
  workdir = tmp_path / "run"
  process = children.start(
    *(sys.executable, "-m", "diffdistill", "train"),
    *(f"--config={config_of()}", f"--workdir={workdir}"),
    stderr=subprocess.PIPE,
    text=True,
  )
  wait_until(lambda: updates_recorded(workdir) >= 3, process)
  process.send_signal(signal.SIGTERM)
  done = children.finish(process)
  assert done.returncode == 75
  assert "diffdistill: asked to leave teacher after update" in done.stderr


@pytest.mark.slow
def test_the_other_processes_end_if_one_hangs(job, config_of, tmp_path):
  workdir = tmp_path / "run"
  # On a busy machine, 10 s are enough for an update. The watchdog lets a
  # compilation take six times as long.
  cadence = {"log": 1, "stall_seconds": 10}
  config = f"--config={config_of(cadence=cadence)}"
  two = job(2, 1, "train", config, f"--workdir={workdir}")
  two.until(lambda: updates_recorded(workdir) >= 3)
  two.send(signal.SIGSTOP, to=1)
  two.processes[0].join(PATIENCE)
  two.processes[1].kill()
  assert two.processes[0].exitcode == 70, two.said()
  (line,) = (line for line in two.said() if line.startswith("diffdistill: "))
  assert line.startswith("diffdistill: no update finished in 10 s;")
  assert "trainer.py" in "".join(two.said())


@pytest.mark.slow
def test_the_other_processes_end_with_one_line_if_the_first_is_lost(
  job, config_of, tmp_path
):
  """JAX alone would abort the other processes later, with a C++ stack."""
  workdir = tmp_path / "run"
  two = job(2, 1, "train", f"--config={config_of()}", f"--workdir={workdir}")
  two.until(lambda: updates_recorded(workdir) >= 3)
  two.send(signal.SIGKILL)
  assert two.statuses() == [-signal.SIGKILL, 70], two.said(1)
  assert two.said(1) == [
    "diffdistill: process 1 of 2: process 0 is lost; start all processes again:"
    " they go on from what they have saved"
  ]


@pytest.mark.slow
def test_processes_with_two_learning_rates_are_refused(
  job, config_of, tmp_path
):
  workdir = tmp_path / "run"
  rate = "config.stages.teacher.optimizer.learning_rate"
  command = ("train", f"--config={config_of()}", f"--workdir={workdir}")
  two = job(2, 1, *command, own=(f"--{rate}=0.5",))
  assert two.statuses() == [1, 1], two.said()
  assert two.said() == [
    f"diffdistill: {rate} is 0.001 on process 0 and 0.5 on process 1; start the"
    " same command, of the same code, on every host"
  ]
  assert two.said(1) == []
  assert not workdir.exists()


@pytest.fixture(scope="module")
def judged_run(small_config, pairs_config, learnable, good_judge):
  """Makes a config with a judge, a teacher, pairs and two students."""
  stages = {
    name: {**stage, "num_updates": 4}
    for name, stage in small_config["stages"].items()
  }
  stages["classifier"] = good_judge
  stages["teacher"]["updates_per_call"] = 2
  stages["halve"]["select"] = {"by": "distance", "every": 2, "num_images": 24}
  stages["student"] = {**pairs_config["stages"]["student"], "num_updates": 8}
  # The disk limit leaves room for the held-out pairs and two shards. Each value
  # takes one byte.
  pool = {"store_noise": False, "max_gigabytes": 260e-9}
  stages["pairs"] = {**pairs_config["stages"]["pairs"], **pool}
  return {
    **small_config,
    "run": ("classifier", "teacher", "pairs", "student", "halve"),
    "data": {
      **small_config["data"],
      "source": {"kind": "npz", "path": learnable, "split": "train"},
    },
    "cadence": {"log": 4, "checkpoint": 4},
    "stages": stages,
  }


@pytest.mark.slow
def test_two_processes_make_the_same_results_as_one(
  job, judged_run, write_config, tmp_path, mesh_of
):
  """On two devices, one process or two make the same pairs and images."""
  config = f"--config={write_config(judged_run)}"
  workdirs = {1: tmp_path / "one", 2: tmp_path / "two"}
  for hosts, workdir in workdirs.items():
    for command, *flags in (
      ("train", config),
      ("sample", f"--out={workdir}/images.npz", "--interpolate=3"),
      ("evaluate",),
    ):
      run = job(
        *(hosts, 2 // hosts, command, *flags),
        *(f"--workdir={workdir}", "--expect_devices=2"),
      )
      assert run.statuses() == [0] * hosts, run.said()
      assert all(run.said(other) == [] for other in range(1, hosts))
      assert run.said()
  one, two = workdirs.values()
  names = ("classifier", "teacher", "student/001", "halve/001")
  apart = distances(two, one, mesh_of(1), names)
  print(f"relative distances: {apart}")
  assert max(apart.values()) < 1e-5
  shards = sorted(path.name for path in (one / "pairs" / "pairs").glob("*.npz"))
  assert len(shards) == 4
  for name in shards:
    ours, theirs = (np.load(w / "pairs" / "pairs" / name) for w in (one, two))
    for field in ours.files:
      np.testing.assert_array_equal(ours[field], theirs[field])
  ours, theirs = (np.load(w / "images.npz")["arr_0"] for w in (one, two))
  np.testing.assert_array_equal(ours, theirs)
  ours, theirs = (
    json.loads((w / "evaluation.json").read_text()) for w in (one, two)
  )
  assert ours["judge"] == theirs["judge"]
  assert len(ours["rows"]) == len(theirs["rows"]) >= 4
  for mine, other in zip(ours["rows"], theirs["rows"], strict=True):
    for field in ("model", "steps", "training_passes"):
      assert mine[field] == other[field]
    for field in ("FD-classifier", "inception_score", "teacher_gap"):
      assert mine[field] == pytest.approx(other[field], rel=1e-3), field
  files = [
    sorted(str(path.relative_to(w)) for path in w.rglob("*.png"))
    for w in (one, two)
  ]
  assert files[0] == files[1]


@pytest.mark.slow
def test_a_refusal_is_printed_once_and_ends_all_processes(
  job, config_of, judged_run, write_config, peace, tmp_path
):
  config, other = f"--config={config_of()}", tmp_path / "other"
  # In the first case both processes find the problem. In the other two cases
  # only the first process finds it, because only that process reads the workdir
  # and writes the pairs.
  blocked = {**judged_run, "run": ("teacher", "pairs")}
  (tmp_path / "file").write_text("no folder")
  blocked["stages"]["pairs"]["path"] = str(tmp_path / "file" / "pairs")
  for workdir, flags, words in (
    (
      other,
      (config, "--expect_devices=32"),
      "expected 32 devices but 2 are he",
    ),
    (
      peace,
      (config, "--config.seed=5"),
      f"{peace} was made with another confi",
    ),
    (other, (f"--config={write_config(blocked)}",), f"{tmp_path}/file"),
  ):
    two = job(2, 1, "train", *flags, f"--workdir={workdir}")
    assert two.statuses() == [1, 1], two.said()
    *_, line = two.said()
    assert line.startswith(f"diffdistill: {words}"), two.said()
    assert two.said(1) == []
