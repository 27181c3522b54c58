"""host.sh by itself, skypilot.yaml, which runs it, and the sizes of slices."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest
import yaml

from tests.children import wait_until

ROOT = pathlib.Path(__file__).parents[2]
HOST_SH = ROOT / "launch" / "host.sh"


@pytest.fixture
def host_sh(children, tmp_path):
  """Runs a command of host.sh on a host whose home is the test's folder."""

  def run(*words, **options):
    environment = {**os.environ, "HOME": str(tmp_path)}
    return children.run("bash", HOST_SH, *words, env=environment, **options)

  return run


@pytest.mark.parametrize(
  ("script", "status"),
  [
    ("exit 0", 0),
    ("echo 'diffdistill: no' >&2; exit 1", 1),
    ("echo 'diffdistill: no' >&2; echo a library >&2; exit 2", 2),
    ("echo Traceback >&2; exit 1", 70),
    ("exit 2", 70),
    ("exit 70", 70),
    ("echo 'diffdistill: saved' >&2; exit 75", 75),
    ("kill -9 $$", 70),
    ("kill -6 $$", 70),
    ("no-such-command", 70),
  ],
)
def test_exit_statuses_say_what_to_do(host_sh, script, status):
  done = host_sh("run", "bash", "-c", f"echo said; {script}")
  assert done.returncode == status
  assert done.stdout == "said\n"


def test_a_termination_reaches_the_command_and_its_status_comes_back(
  children, tmp_path
):
  script = (
    "trap 'sleep 0.3; exit 75' TERM; echo up; while :; do sleep 0.05; done"
  )
  process = children.start(
    *("bash", HOST_SH, "run", "bash", "-c", script),
    env={**os.environ, "HOME": str(tmp_path)},
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "up\n"
  process.send_signal(signal.SIGTERM)
  assert children.finish(process).returncode == 75


def test_the_check_counts_devices(children, tmp_path):
  (tmp_path / "diffdistill" / "venv" / "bin").mkdir(parents=True)
  python = tmp_path / "diffdistill" / "venv" / "bin" / "python"
  python.write_text(f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n')
  python.chmod(0o755)
  environment = {
    **os.environ,
    "HOME": str(tmp_path),
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "8",
  }
  done = children.run("bash", HOST_SH, "check", "4", "1", env=environment)
  assert done.returncode == 1
  assert done.stdout.endswith(" sees 8 devices\n")


def test_an_attempt_that_was_lost_is_said_to_be(host_sh, tmp_path):
  attempt = tmp_path / "diffdistill" / "attempt.2"
  attempt.mkdir(parents=True)
  (attempt / "log").write_text("halve/064\n")
  # A session of the host before it started anew.
  (attempt / "session").write_text(f"{os.getsid(0)} another-boot\n")
  state = host_sh("state", check=True).stdout
  assert state.split()[2:4] == ["2", "70"]


def test_an_attempt_starts_once_and_stops(host_sh, children, tmp_path):
  started = tmp_path / "started"
  script = f"echo up >> {started}; sleep infinity"
  for _ in range(2):
    host_sh("start", "1", "bash", "-c", script, check=True)
  wait_until(started.exists)
  state = host_sh("state", check=True).stdout
  assert state.split()[2:] == ["1", "running"]
  host_sh("stop", check=True)
  state = host_sh("state", check=True).stdout
  assert state.split()[2:4] == ["1", "70"]
  assert not children.alive()
  assert started.read_text() == "up\n"


def skypilot():
  return yaml.safe_load((ROOT / "launch" / "skypilot.yaml").read_text())


def test_skypilot_restarts_what_was_preempted_and_no_refusal():
  task = skypilot()
  recovery = task["resources"]["job_recovery"]
  assert recovery == {
    "recover_on_exit_codes": [75],
    "max_restarts_on_errors": 0,
  }
  assert [n for n, v in task["envs"].items() if v is None] == [
    "CONFIG",
    "WORKDIR",
  ]


@pytest.mark.parametrize(
  ("plan", "status", "trainings"),
  [
    ([0], 0, 1),
    ([75], 75, 1),
    ([70, "crash", 0], 0, 3),
    ([70, 1], 1, 2),
    (["crash"], 1, 5),
  ],
)
def test_skypilot_runs(new_cloud, plan, status, trainings):
  cloud = new_cloud()
  cloud.set(plan=[{"status": status} for status in plan])
  task = skypilot()
  envs = {
    **task["envs"],
    "CONFIG": "configs/a.py",
    "WORKDIR": "gs://bucket/run",
  }
  extra = {"HOME": str(cloud.root / "home"), "SIM_HOST": "s0-w0", **envs}
  script = f"set -e\n{task['setup']}\nset +e\n{task['run']}"
  done = cloud.run("bash", "-c", script, **extra)
  assert done.returncode == status, done.stderr
  assert len(cloud.lines("trainings.jsonl")) == trainings
  assert cloud.lines("trainings.jsonl")[0][1:-1] == [
    "train",
    "--config=configs/a.py",
    "--workdir=gs://bucket/run",
    "--expect_devices=64",
    "--multihost",
  ]
  installed = (cloud.root / "uv.log").read_text()
  assert f"jax[tpu] diffdistill[tfds,gcs] @ {ROOT}" in installed


@pytest.mark.parametrize(
  ("accelerator", "chips", "hosts", "topology"),
  [
    ("v5litepod-8", 8, 1, "2x4"),
    ("v5litepod-256", 256, 64, "16x16"),
    ("v6e-64", 64, 16, "8x8"),
    ("v5p-8", 4, 1, "2x2x1"),
    ("v5p-128", 64, 16, "4x4x4"),
    ("v4-32", 16, 4, "2x2x4"),
  ],
)
@pytest.mark.usefixtures("launch_path")
def test_sizes_of_slices(accelerator, chips, hosts, topology):
  from topology import parse

  slice_ = parse(accelerator)
  assert (slice_.chips, slice_.hosts) == (chips, hosts)
  assert slice_.topology == topology


@pytest.mark.usefixtures("launch_path")
def test_every_topology_has_its_chips():
  import math

  from topology import FAMILIES

  for family in FAMILIES.values():
    for chips, topology in family.topologies.items():
      assert math.prod(map(int, topology.split("x"))) == chips
