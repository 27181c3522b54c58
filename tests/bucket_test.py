"""Tests of runs in a bucket: a real server, and a proxy that makes it fail."""

import collections
import json
import pathlib
import re
import socket
import threading

import numpy as np
import pytest

from tests.children import PATIENCE, Children, wait_until
from tests.fake_bucket import NAME, FakeBucket
from tests.forked import Forked

pytestmark = pytest.mark.slow
CONFIG = """
from diffdistill.configs import digits

def get_config():
  config = digits.get_config("progressive")
  config.run = {run}
  config.data.source = {{"kind": "npz", "path": "{data}", "split": "train"}}
  config.model.network = {{"kind": "mlp", "width": 8, "depth": 1}}
  config.classifier.update(channels=8)
  config.cadence.update(log=1, checkpoint=20)
  config.evaluation.update(num_images=60, batch_size=30, gap_images=20)
  config.evaluation.num_steps = (1, 2)
  for name in config.run:
    config.stages[name].update(num_updates=60, batch_size=8)
  for name in ("classifier", "teacher"):
    config.stages[name].optimizer.warmup = 2
  # The classifier judges the models, so it must be better than chance.
  config.stages.classifier.update(num_updates=60, batch_size=64)
  config.stages.classifier.optimizer.learning_rate = 1e-2
  config.stages.halve.start_steps = 4
  config.stages.halve.long_rounds = 0
  return config
"""
ROUNDS = ("classifier", "teacher", "halve/002", "halve/001")
UPDATES = 4 * 60
# Lines of libraries about credentials, which the test server does not need.
NOISE = ("google_auth_provider", "[Gloo]", "peer ranks")


class Runs:
  """Runs commands that use the bucket."""

  def __init__(self, bucket, fork, folder):
    self.bucket, self._fork, self._folder = bucket, fork, folder
    self._count = 0

  def config(self, *stages):
    """The flag of a config with some stages; without arguments, with all."""
    stages = stages or ("classifier", "teacher", "halve")
    path = self._folder / f"{'_'.join(stages)}.py"
    data = f"gs://{NAME}/digits_{{split}}.npz"
    path.write_text(CONFIG.format(data=data, run=stages))
    return f"--config={path}"

  def start(self, *arguments, devices=1):
    self._count += 1
    log = self._folder / f"log.{self._count}"
    process = self._fork(
      log, devices, *arguments, environment=self.bucket.environment
    )
    return process, log

  def run(self, *arguments):
    """Runs a command; returns its status and the lines that it printed."""
    self.bucket.requests.clear()
    process, log = self.start(*arguments)
    process.join(PATIENCE)
    requests = dict(self.bucket.requests)
    total = sum(requests.values())
    print(f"{arguments[0]}: {total} requests: {requests}")
    return process.exitcode, lines_of(log)

  def stopped_at(self, words, *processes):
    """Waits until a program writes a name with these words, and holds it there.

    The program then waits for the answer of the server. Let the server answer
    again by `self.bucket.answer`, after the program was killed.
    """
    held = threading.Event()

    def answer(what, name):
      if what == "write" and words in name:
        held.set()
      return 20.0 if held.is_set() else None

    self.bucket.answer = answer
    wait_until(
      held.is_set,
      *(process for process, _ in processes),
      said=lambda i: processes[i][1].read_text(),
    )


def lines_of(log):
  lines = log.read_text().splitlines()
  return [line for line in lines if not any(noise in line for noise in NOISE)]


def products(workdir, rounds=ROUNDS):
  """The digests of all weights of finished rounds of a copied run."""
  return {
    name: json.loads((workdir / name / "final.json").read_text())["products"]
    for name in rounds
  }


@pytest.fixture(scope="module")
def bucket():
  with Children() as children:
    bucket = FakeBucket(children)
    yield bucket
    bucket.close()


@pytest.fixture(scope="module")
def runs(bucket, tmp_path_factory):
  with Forked() as fork:
    runs = Runs(bucket, fork, tmp_path_factory.mktemp("runs"))
    digits = pathlib.Path("configs/digits.py").absolute()
    status, said = runs.run(
      *("pack", f"--config={digits}:progressive"),
      f"--out=gs://{NAME}/digits_{{split}}.npz",
    )
    assert status == 0, said
    assert bucket.names() == ["digits_test.npz", "digits_train.npz"]
    yield runs


@pytest.fixture(autouse=True)
def healthy(bucket):
  """Lets the bucket answer again after each test."""
  yield
  bucket.answer = lambda what, name: None


@pytest.fixture(scope="module")
def peace(runs, tmp_path_factory):
  """The weights of a run on a disk, which nothing interrupts."""
  workdir = tmp_path_factory.mktemp("peace") / "run"
  status, said = runs.run("train", runs.config(), f"--workdir={workdir}")
  assert status == 0, said
  return products(workdir)


@pytest.fixture(scope="module")
def killed(runs, bucket, peace, tmp_path_factory):
  """Trains in the bucket, is killed, goes on; gives the name of the workdir."""
  workdir = f"--workdir=gs://{NAME}/killed"
  started = runs.start("train", runs.config(), workdir)
  runs.stopped_at("killed/teacher/checkpoints/40", started)
  started[0].kill()
  started[0].join()
  bucket.answer = lambda what, name: None
  status, said = runs.run("train", runs.config(), workdir)
  assert status == 0, said
  assert "teacher: goes on from update 20" in said
  copied = tmp_path_factory.mktemp("killed")
  bucket.copy("killed/", copied)
  assert products(copied / "killed") == peace
  left = {name for name in bucket.names("killed/") if "checkpoints" in name}
  assert not left
  assert "killed/lock.json" not in bucket.names("killed/")
  return workdir


def test_a_killed_run_goes_on_with_the_same_weights(killed):
  assert killed


@pytest.mark.parametrize(
  ("arguments", "made"),
  [
    (("evaluate",), "killed/evaluation.json"),
    (("sample", "--num_images=4", f"--out=gs://{NAME}/out/s.png"), "out/s.png"),
    (("sample", "--num_images=4", f"--out=gs://{NAME}/out/s.npz"), "out/s.npz"),
    (("report", f"--out=gs://{NAME}/out/r.html"), "out/r.html"),
    (("export", f"--out=gs://{NAME}/out/student"), "out/student/README.md"),
  ],
)
def test_commands_read_and_write_a_bucket(
  runs, bucket, killed, arguments, made, tmp_path
):
  status, said = runs.run(*arguments, killed)
  assert status == 0, said
  assert made in bucket.names()
  bucket.copy("out/", tmp_path)
  if made.endswith("s.npz"):
    assert np.load(tmp_path / made)["arr_0"].shape == (4, 8, 8, 1)


def test_a_bucket_is_asked_little_between_two_checkpoints(runs, bucket, killed):
  """A record of each update costs no request of its own."""
  del killed  # the compiled programs are kept
  bucket.log.clear()
  status, said = runs.run(
    "train", runs.config(), f"--workdir=gs://{NAME}/asked"
  )
  assert status == 0, said
  about = collections.Counter(
    (what, "stored" if re.search("/checkpoints/|/final", name) else name)
    for what, name, _ in bucket.log
  )
  total = sum(about.values())
  stored = sum(n for (_, name), n in about.items() if name == "stored")
  print(
    f"{total} requests for {UPDATES} updates; {stored} of them store 8"
    f" checkpoints and {len(ROUNDS)} results, which is"
    f" {stored / (8 + len(ROUNDS)):.0f} for each; the others are"
    f" {(total - stored) / UPDATES:.2f} for each update"
  )
  # Before each checkpoint and each end of a round, and every ten seconds.
  assert about["write", "asked/metrics.jsonl"] < UPDATES / 4
  assert about["read", "asked/metrics.jsonl"] <= 2 * len(ROUNDS) + 1
  assert (total - stored) / UPDATES < 2
  bucket.log.clear()


def test_two_trainings_of_one_workdir_are_refused(runs, bucket):
  workdir = f"--workdir=gs://{NAME}/shared"
  refused = threading.Event()

  def answer(what, name):
    # The training that holds the lock does not end before the other one.
    if what == "write" and "shared/teacher/checkpoints/20/" in name:
      refused.wait(PATIENCE)

  bucket.answer = answer
  both = [
    runs.start("train", runs.config("teacher"), workdir) for _ in range(2)
  ]
  wait_until(lambda: any(p.exitcode is not None for p, _ in both))
  refused.set()
  for process, _ in both:
    process.join(PATIENCE)
  said = [lines_of(log) for _, log in both]
  statuses = [process.exitcode for process, _ in both]
  assert sorted(statuses) == [0, 1], said
  line = said[statuses.index(1)][-1]
  assert re.fullmatch(
    rf"diffdistill: gs://{NAME}/shared is in use: process \d+ on .* trains"
    " there; wait until it ends, or pass another --workdir",
    line,
  )


def test_errors_in_the_middle_are_retried(runs, bucket, peace, tmp_path):
  """Some requests are answered by 503 or 429, and some are slow."""
  count = 0

  def answer(what, name):
    nonlocal count
    count += 1
    if count % 60 == 0:
      return 503 if count % 120 else 429
    return 0.5 if count % 60 == 30 else None

  bucket.answer = answer
  status, said = runs.run(
    "train", runs.config("teacher", "halve"), f"--workdir=gs://{NAME}/errors"
  )
  assert status == 0, said
  bucket.copy("errors/", tmp_path)
  assert products(tmp_path / "errors", ROUNDS[1:]) == {
    name: peace[name] for name in ROUNDS[1:]
  }
  assert count > 400


def test_a_lost_permission_ends_a_run_that_goes_on_later(
  runs, bucket, peace, tmp_path
):
  workdir = f"--workdir=gs://{NAME}/refused"
  config, denied = runs.config("teacher"), []

  def answer(what, name):
    if "refused/teacher/checkpoints/40" in name or denied:
      denied.append(name)
      return 403 if what in ("write", "delete") else None
    return None

  bucket.answer = answer
  status, said = runs.run("train", config, workdir)
  assert status == 1, said
  assert denied
  assert "Traceback" not in "\n".join(said)
  assert re.search(rf"gs://{NAME} refuses this account; permit", said[-1])
  # The older checkpoint is whole, and the new one is not marked as whole.
  names = bucket.names("refused/teacher/")
  assert "refused/teacher/checkpoints/20/commit_success.txt" in names
  assert "refused/teacher/checkpoints/40/commit_success.txt" not in names
  bucket.answer = lambda what, name: None
  status, said = runs.run("train", config, workdir)
  assert status == 0, said
  assert "teacher: goes on from update 20" in said
  bucket.copy("refused/", tmp_path)
  made = products(tmp_path / "refused", ["teacher"])
  assert made["teacher"] == peace["teacher"]


def test_a_bucket_that_does_not_answer_is_told_in_one_line(
  runs, bucket, killed
):
  bucket.answer = lambda what, name: 503
  status, said = runs.run("report", killed, "--out=r.html")
  assert status == 1
  assert said == [
    f"diffdistill: gs://{NAME} cannot be reached (HttpError: by a test, 503);"
    " what was saved before is kept; run the same command again"
  ]
  assert not pathlib.Path("r.html").exists()


def test_a_bucket_that_does_not_exist_is_told_in_one_line(runs):
  status, said = runs.run(
    "train", runs.config("teacher"), "--workdir=gs://nowhere/run"
  )
  assert status == 1
  assert said[-1] == (
    "diffdistill: gs://nowhere does not exist; make it, or pass another place"
  )


def test_two_processes_train_in_a_bucket_and_survive_a_kill(
  runs, bucket, peace, tmp_path
):
  command = ("train", runs.config("teacher"), f"--workdir=gs://{NAME}/two")
  first, second = start_two(runs, *command)
  runs.stopped_at("two/teacher/checkpoints/40", first, second)
  second[0].kill()
  bucket.answer = lambda what, name: None
  for process, _ in (first, second):
    process.join(PATIENCE)
  assert first[0].exitcode == 70, lines_of(first[1])
  again = start_two(runs, *command)
  for process, _ in again:
    process.join(PATIENCE)
  said = [lines_of(log) for _, log in again]
  assert [process.exitcode for process, _ in again] == [0, 0], said
  assert any("goes on from update" in line for line in said[0])
  bucket.copy("two/", tmp_path)
  # Sums over two processes are rounded in another order, so compare no bits.
  made = products(tmp_path / "two", ["teacher"])
  assert made["teacher"].keys() == peace["teacher"].keys()


def start_two(runs, *command):
  """Starts a command on two processes, which find each other."""
  with socket.socket() as sock:
    sock.bind(("localhost", 0))
    port = sock.getsockname()[1]
  return [
    runs.start(
      *(*command, "--multihost", "--num_processes=2"),
      *(f"--coordinator=localhost:{port}", f"--process_id={i}"),
    )
    for i in range(2)
  ]
