"""Commands read and write a bucket, as they do a disk."""

import collections
import re
import threading

import numpy as np
import pytest

from tests.bucket.fake_bucket import NAME
from tests.bucket.runs import ROUNDS, UPDATES, lines_of
from tests.children import PATIENCE, wait_until

pytestmark = pytest.mark.slow


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
