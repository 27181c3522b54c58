"""launch/slurm.sbatch on a real Slurm of two nodes: how each training ends.

A training has two tasks, one on each node. Every training that was interrupted
must end with the weights of one that was not, bit for bit.
"""

import os
import pathlib
import re
import sys

import jax
import numpy as np
import pytest
from etils import epath

from diffdistill.run import from_config
from diffdistill.training import checkpoint
from tests.launch import slurm_cluster
from tests.launch.held_digits import SAVED_EVERY

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "--config=tests/launch/held_digits.py"
AT_ONCE, SLOWLY, NEVER, DIES = "0", "1", "10000", "die"
# Requeued by the script, which says why.
REQUEUED = "slurm.sbatch: {}, requeued\n"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
  slurm_cluster.require()
  folder = tmp_path_factory.mktemp("slurm")
  environment = {
    **os.environ,
    "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHON": sys.executable,
    "PYTHONPATH": str(ROOT),
    "HOME": str(folder),
    "TMPDIR": str(folder),
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  with slurm_cluster.Cluster(folder, environment) as started:
    yield started


class Job:
  """A job that trains in a folder, each batch in `pace` seconds."""

  def __init__(
    self, cluster, folder, *flags, pace=SLOWLY, restarts=0, checked=False
  ):
    self._cluster, self.folder = cluster, folder
    self.workdir, self._log = folder / "run", folder / "job.log"
    self._held = folder / "held"
    self.pace(pace)
    options = (
      *("--parsable", f"--chdir={ROOT}", f"--output={self._log}"),
      *("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0"),
      *("--cpus-per-task=1", "--time=10"),
      f"--export=ALL,HELD={self._held},SLURM_RESTART_COUNT={restarts}",
    )
    train = (f"--workdir={self.workdir}", *flags)
    if checked:
      # The script checks the config and submits itself.
      command = ("bash", "launch/slurm.sbatch", *options, "--", *train)
    else:
      command = ("sbatch", *options, "launch/slurm.sbatch", *train)
    self.id = cluster.call(*command, cwd=ROOT)

  def pace(self, seconds):
    """Sets the seconds that each batch takes, at once for all processes."""
    new = self._held.with_suffix(".new")
    new.write_text(seconds)
    new.rename(self._held)

  def said(self):
    return self._log.read_text() if self._log.exists() else ""

  def until(self, true):
    self._cluster.until(true)

  def until_it_trains(self, starts=1):
    """Waits until this start of the training runs and has a checkpoint."""
    saved = self.workdir / "teacher" / "checkpoints"

    def trains():
      goes_on = len(re.findall("goes on from update", self.said()))
      steps = [path for path in saved.glob("*") if path.name.isdigit()]
      return goes_on == starts - 1 and steps

    self.until(trains)

  def limit(self, minutes):
    """Sets the job's time limit; Slurm looks at the limits every 30 s."""
    words = (f"JobId={self.id}", f"TimeLimit={minutes}")
    self._cluster.call("scontrol", "update", *words)

  def cancel(self):
    self._cluster.call("scancel", self.id)

  def state(self):
    """The job's state and its number of restarts, such as RUNNING 0."""
    shown = self._cluster.call("scontrol", "show", "job", self.id)
    return " ".join(re.findall(r"(?:JobState|Restarts)=(\w+)", shown))

  def ended(self):
    """Waits for the job's end and gives its last state and the restarts."""
    going = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")
    self.until(lambda: self.state().split()[0] not in going)
    return self.state()

  def weights(self):
    """The trees of weights of the finished run, by name."""
    run = from_config.reopen(epath.Path(self.workdir))
    folder = epath.Path(self.workdir) / "teacher"
    return {
      name: jax.device_get(checkpoint.load_final(folder, name, run.layout))
      for name in checkpoint.product_names(folder)
    }


@pytest.fixture(scope="module")
def submit(cluster, tmp_path_factory):
  """Starts a job, by default in a new folder and with the config above."""

  def start(*flags, folder=None, **options):
    folder = folder or tmp_path_factory.mktemp("job")
    return Job(cluster, folder, *(flags or (CONFIG,)), **options)

  return start


@pytest.fixture(scope="module")
def jobs(cluster, submit):
  """Three jobs, which run at once because Slurm looks at time limits rarely.

  "free" is not interrupted, "warned" came near its time limit, and "hung" made
  no more updates and reached its time limit. The last two were requeued.
  """
  warned, hung = submit(), submit()
  free = submit(pace=AT_ONCE, checked=True)
  for job, pace, minutes in ((warned, SLOWLY, 1), (hung, NEVER, 0)):
    job.until_it_trains()
    job.pace(pace)
    job.limit(minutes)
  free.until(lambda: free.state() != "PENDING 0")
  # No job may start before the limits are changed.
  cluster.call("scontrol", "update", "PartitionName=test", "State=DOWN")
  for job in (warned, hung):
    job.until(lambda job=job: job.state() == "PENDING 1")
    job.pace(AT_ONCE)
    job.limit(10)
  cluster.call("scontrol", "update", "PartitionName=test", "State=UP")
  return {"free": free, "warned": warned, "hung": hung}


@pytest.fixture(scope="module")
def expected(jobs):
  """The weights of a training that was not interrupted."""
  assert jobs["free"].ended() == "COMPLETED 0", jobs["free"].said()
  return jobs["free"].weights()


def same(weights, others):
  assert weights.keys() == others.keys()
  for name, tree in weights.items():
    pairs = zip(*map(jax.tree.leaves, (tree, others[name])), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs), name
  return True


def test_before_its_time_limit_a_job_saves_and_is_requeued(jobs, expected):
  job = jobs["warned"]
  assert job.ended() == "COMPLETED 1", job.said()
  assert REQUEUED.format("ended with status 75") in job.said()
  left = re.findall(r"asked to leave teacher after update (\d+);", job.said())
  assert re.findall(r"goes on from update (\d+)", job.said()) == left[:1]
  assert same(job.weights(), expected)


def test_a_job_that_cannot_save_is_requeued_at_its_time_limit(jobs, expected):
  job = jobs["hung"]
  assert job.ended() == "COMPLETED 1", job.said()
  assert REQUEUED.format("reached its time limit") in job.said()
  assert "asked to leave" not in job.said()
  [update] = re.findall(r"goes on from update (\d+)", job.said())
  assert int(update) % SAVED_EVERY == 0
  assert same(job.weights(), expected)


def test_a_cancelled_job_saves_and_is_not_requeued(submit, expected):
  job = submit()
  job.until_it_trains()
  job.cancel()
  assert job.ended() == "CANCELLED 0", job.said()
  assert "asked to leave teacher after update" in job.said()
  assert "requeued" not in job.said()
  # The same command continues in the same folder.
  again = submit(folder=job.folder, pace=AT_ONCE)
  assert again.ended() == "COMPLETED 0", again.said()
  assert "goes on from update" in again.said()
  assert same(again.weights(), expected)


def test_a_job_that_dies_is_requeued_at_most_100_times(submit):
  job = submit(pace=DIES, restarts=99)
  job.until(lambda: job.state() == "PENDING 1")
  job.cancel()
  assert job.ended() == "CANCELLED 1", job.said()
  assert REQUEUED.format("ended with status 70") in job.said()
  job = submit(pace=DIES, restarts=100)
  assert job.ended() == "FAILED 0", job.said()
  assert "status 70 after 100 restarts; it ends here" in job.said()


def test_a_job_survives_the_loss_of_each_of_its_nodes(
  cluster, submit, expected
):
  job = submit()
  for starts, node in enumerate(slurm_cluster.NODES, 1):
    job.until_it_trains(starts)
    cluster.kill_node(node)
    job.until(lambda starts=starts: job.state() == f"PENDING {starts}")
    cluster.start_node(node)
  job.pace(AT_ONCE)
  assert job.ended() == "COMPLETED 2", job.said()
  assert same(job.weights(), expected)


@pytest.mark.parametrize(
  ("flags", "line"),
  [
    (
      (CONFIG, "--config.stages.teacher.num_update=3"),
      "no field of the config; did you mean num_updates?",
    ),
    (
      ("--workdir=x",),
      "slurm.sbatch: --config=... or --workdir=... is missing",
    ),
  ],
)
def test_a_refused_job_ends_and_is_not_requeued(submit, flags, line):
  job = submit(*flags)
  assert job.ended() == "FAILED 0", job.said()
  assert line in job.said()
  assert "requeued" not in job.said()
