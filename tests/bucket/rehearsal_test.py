"""A rehearsal of a pod job, whose workdir is in a bucket.

Two hosts train and are preempted, one host with two devices goes on, another
machine judges each model as it is finished, and the notebook opens the run.
"""

import json
import re

import pytest

from tests.bucket.fake_bucket import NAME
from tests.bucket.runs import ROUNDS, lines_of, start_two
from tests.children import PATIENCE, wait_until
from tests.launch.colab_test import complaints, execute, pictures, tables

pytestmark = pytest.mark.slow


def test_a_preempted_run_goes_on_elsewhere_and_is_judged_meanwhile(
  runs, bucket, tmp_path, monkeypatch
):
  place = f"gs://{NAME}/rehearsed"
  command = ("train", runs.config(), f"--workdir={place}")

  hosts = start_two(runs, *command)
  marked = "rehearsed/teacher/checkpoints/20/commit_success.txt"
  wait_until(lambda: marked in bucket.names("rehearsed/"), *_processes(hosts))
  follower = runs.start("evaluate", f"--workdir={place}", "--follow")
  for process, _ in hosts:
    process.terminate()
  _join(hosts)
  said = [lines_of(log) for _, log in hosts]
  assert [process.exitcode for process, _ in hosts] == [75, 75], said
  assert "asked to leave teacher after update" in said[0][-1]

  alone = runs.start(*command, devices=2)
  _join([alone])
  said = lines_of(alone[1])
  assert alone[0].exitcode == 0, said
  assert any(re.match(r"teacher: goes on from update [2-5]\d", x) for x in said)

  _join([follower])
  said = lines_of(follower[1])
  assert follower[0].exitcode == 0, said
  bucket.copy("rehearsed/", tmp_path)
  text = (tmp_path / "rehearsed" / "evaluation.json").read_text()
  assert {row["model"] for row in json.loads(text)["rows"]} == set(ROUNDS[1:])

  for name, value in bucket.environment.items():
    monkeypatch.setenv(name, value)
  few = {"NUM_IMAGES": 60, "BATCH_SIZE": 30, "NUM_STEPS": (1, 2)}
  cells = execute("evaluate", tmp_path, WORKDIR=place, STUDENT="", **few)
  assert complaints(cells) == []
  assert len(pictures(cells["sheets"])) == 1
  (rows,) = tables(cells["table"])
  assert [row["model"] for row in rows][-2:] == list(ROUNDS[2:])


def _join(started):
  for process, _ in started:
    process.join(PATIENCE)


def _processes(started):
  return [process for process, _ in started]
