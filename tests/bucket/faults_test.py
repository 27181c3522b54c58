"""A bucket fails, refuses or loses a machine, and runs lose nothing."""

import pathlib
import re

import pytest

from tests.bucket.fake_bucket import NAME
from tests.bucket.runs import ROUNDS, lines_of, products, start_two
from tests.children import PATIENCE

pytestmark = pytest.mark.slow


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


def test_a_bucket_that_does_not_answer_is_told_in_one_line(runs, bucket):
  bucket.answer = lambda what, name: 503
  status, said = runs.run(
    "report", f"--workdir=gs://{NAME}/any", "--out=r.html"
  )
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
