"""Runs commands that use a bucket, for the tests of this folder."""

import json
import socket
import threading

from tests.bucket.fake_bucket import NAME
from tests.children import PATIENCE, wait_until

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
