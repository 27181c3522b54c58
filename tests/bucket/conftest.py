"""A bucket, and finished runs in it, for the tests of this folder."""

import pathlib

import pytest

from tests.bucket.fake_bucket import NAME, FakeBucket
from tests.bucket.runs import Runs, products
from tests.children import Children
from tests.forked import Forked


@pytest.fixture(scope="session")
def bucket():
  with Children() as children:
    bucket = FakeBucket(children)
    yield bucket
    bucket.close()


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def peace(runs, tmp_path_factory):
  """The weights of a run on a disk, which nothing interrupts."""
  workdir = tmp_path_factory.mktemp("peace") / "run"
  status, said = runs.run("train", runs.config(), f"--workdir={workdir}")
  assert status == 0, said
  return products(workdir)


@pytest.fixture(scope="session")
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
