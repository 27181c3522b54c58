"""slurm.sbatch, run by bash as Slurm runs it, on stand-ins for its programs."""

import pathlib
import re
import signal
import subprocess

import pytest

from tests.children import wait_until

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = ("--config=configs/digits.py:all", "--workdir=/shared/run")


@pytest.fixture
def slurm(new_cloud):
  """A cluster whose jobs have two nodes with one GPU each."""
  cloud = new_cloud("srun", "scontrol")
  for name in ("launch", "submitted"):
    (cloud.root / name).mkdir()
  for name in ("slurm.sbatch", "host.sh"):
    (cloud.root / "launch" / name).write_bytes(
      (ROOT / "launch" / name).read_bytes()
    )
  cloud.set(job_state="RUNNING")
  return cloud


def start(slurm, *flags, **extra):
  environment = slurm.environment(
    SLURM_JOB_ID="7",
    SLURM_JOB_NUM_NODES="2",
    SLURM_NTASKS_PER_NODE="1",
    SLURM_CPUS_PER_TASK="4",
    **extra,
  )
  environment["PATH"] = f"{slurm.root}/hosts.bin:{environment['PATH']}"
  return slurm.children.start(
    *("bash", "launch/slurm.sbatch", *(flags or FLAGS)),
    cwd=slurm.root,
    env=environment,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def end(slurm, process):
  """The status of a job's script and what it said."""
  done = slurm.children.finish(process)
  return done.returncode, done.stdout


def job(slurm):
  """Runs the job as often as it is requeued; the last status, the number."""
  for number in range(1, 10):
    status, said = end(slurm, start(slurm))
    if slurm.state.get("requeued", 0) < number:
      assert not list(slurm.root.glob(".diffdistill*")), "something is left"
      return status, number, said
  raise AssertionError("requeued for ever")


def test_its_header_and_body_are_bash_and_slurm():
  path = ROOT / "launch" / "slurm.sbatch"
  subprocess.run(["bash", "-n", path], check=True)
  options = re.findall(r"^#SBATCH (\S+)$", path.read_text(), re.MULTILINE)
  assert {"--requeue", "--signal=B:TERM@120"} < set(options)
  # Slurm reads options up to the first command.
  assert path.read_text().rindex("#SBATCH") < path.read_text().index("\nset ")


def test_does_what_the_dry_run_prints(slurm):
  _, dry = end(slurm, start(slurm, DRY_RUN="1"))
  assert not slurm.lines("calls.jsonl")
  slurm.set(plan=[{"status": 75}, {"status": 0}])
  assert job(slurm)[:2] == (0, 2)
  calls = [" ".join(call) for call in slurm.lines("calls.jsonl")]
  train, requeue = dry.splitlines()
  assert calls == [train, "scontrol show job 7", requeue, train]
  assert len(slurm.lines("finished.jsonl")) == 1
  for training in slurm.lines("trainings.jsonl"):
    assert training[1:-1] == [
      "train",
      *FLAGS,
      "--expect_devices=2",
      "--multihost",
    ]


def test_what_stalls_or_dies_is_requeued(slurm):
  ends = [
    {"status": status, "only": "s0-w1", "others": 70}
    for status in (70, "killed", "crash")
  ]
  slurm.set(plan=[*ends, {"status": 0}])
  assert job(slurm)[:2] == (0, 4)


@pytest.mark.parametrize("others", [0, 70, 75])
def test_a_refusal_by_one_task_is_not(slurm, others):
  slurm.set(plan=[{"status": 1, "only": "s0-w1", "others": others}])
  status, number, said = job(slurm)
  assert (status, number) == (1, 1)
  assert "diffdistill: batch_size is 7; pass a multiple of 8" in said


def test_what_dies_again_and_again_is_given_up(slurm):
  slurm.set(plan=[{"status": 75}, {"status": "crash"}])
  status, number, said = job(slurm)
  assert (status, number) == (1, 1 + 5)
  assert "died 5 times in a row with status 70" in said


@pytest.mark.parametrize(
  ("state", "requeued"), [("RUNNING", 1), ("CANCELLED", 0)]
)
def test_the_end_of_its_time_requeues_it_and_a_cancellation_does_not(
  slurm, state, requeued
):
  slurm.set(plan=[{"status": "hangs"}], job_state=state)
  process = start(slurm)
  wait_until(lambda: len(slurm.lines("trainings.jsonl")) == 2, process)
  process.send_signal(signal.SIGTERM)
  status, _ = end(slurm, process)
  assert slurm.state.get("requeued", 0) == requeued
  assert status == (0 if requeued else 75)


def test_refuses_without_a_config(slurm):
  status, said = end(slurm, start(slurm, "--workdir=/shared/run"))
  assert status == 2
  assert said == "slurm.sbatch: --config=... or --workdir=... is missing\n"
  assert not slurm.lines("calls.jsonl")
