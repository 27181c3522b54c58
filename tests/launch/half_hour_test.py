"""The half-hour run of CIFAR-10, shortened to a minute and interrupted.

The run is made in pieces. A piece is killed by SIGKILL, another one gets
SIGTERM, and the others reach their time limit. Between two pieces the run moves
to a smaller copy of its folder.
"""

import json
import os
import pathlib
import shutil
import signal
import sys

import jax
import numpy as np
import pytest
from etils import epath

from diffdistill.run import from_config
from diffdistill.training import checkpoint
from tests.children import Children, wait_until

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "--config=tests/launch/shrunken.py"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  """Environment variables for runs on noisy red, green and blue images.

  A classifier learns the colours in ten updates, so it is trusted to judge.
  """
  folder = tmp_path_factory.mktemp("data")
  random = np.random.default_rng(0)
  colours = 255 * np.eye(3).reshape(3, 1, 1, 3)
  for split, count in (("train", 400), ("test", 100)):
    label = np.arange(count, dtype=np.int32) % 3
    noise = random.normal(0, 40, (count, 32, 32, 3))
    image = np.clip(colours[label] + noise, 0, 255).astype(np.uint8)
    np.savez(folder / f"{split}.npz", image=image, label=label)
  return {
    **os.environ,
    "PYTHON": sys.executable,
    "PYTHONPATH": str(ROOT),
    "SHRUNKEN_DATA": str(folder / "{split}.npz"),
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "XLA_FLAGS": "--xla_backend_optimization_level=1",
  }


@pytest.fixture(scope="module")
def children():
  """Starts processes for the tests of this file, and ends them afterwards."""
  with Children() as started:
    yield started


@pytest.fixture(scope="module")
def command(environment, children):
  def run(*arguments):
    program = (sys.executable, "-m", "diffdistill", *arguments)
    return children.run(*program, cwd=ROOT, env=environment, check=True)

  return run


@pytest.fixture(scope="module")
def piece(environment, children, tmp_path_factory):
  """Starts one piece of the run in a workdir."""
  results = tmp_path_factory.mktemp("results")

  def start(workdir, minutes):
    return children.start(
      *(sys.executable, "-m", "diffdistill", "run", CONFIG, "--cpu"),
      "--reserve=15",
      *(f"--workdir={workdir}", f"--minutes={minutes}"),
      f"--results={results}",
      cwd=ROOT,
      env=environment,
    )

  start.results = results
  return start


@pytest.fixture(scope="module")
def pieces(piece, command, children, tmp_path_factory):
  """Runs all pieces; gives the last workdir and each piece's exit status."""
  folder = tmp_path_factory.mktemp("runs")
  workdir, statuses = folder / "run", []
  # Kill the first piece while the teacher trains, after clock.json has settled
  # the number of updates.
  process = piece(workdir, 0)
  wait_until((workdir / "teacher" / "clock.json").exists, process)
  # Kill all processes of the piece at once, as when a machine is lost.
  children.kill()
  statuses.append(process.wait())
  # Tell the second piece to leave in the middle of the halving rounds.
  process = piece(workdir, 0)
  wait_until((workdir / "halve" / "008" / "clock.json").exists, process)
  process.send_signal(signal.SIGTERM)
  statuses.append(process.wait())
  # Continue with only the carried files, as on another machine.
  command("carry", f"--workdir={workdir}", f"--out={folder / 'small'}")
  shutil.rmtree(workdir)
  workdir = folder / "small"
  # A busy machine may need longer pieces; the last has no limit.
  for minutes in (2, 2, 4, 8, 0):
    statuses.append(piece(workdir, minutes).wait())
    if statuses[-1] != 75:
      break
  return workdir, statuses


@pytest.mark.slow
def test_the_pieces_finish_the_run(pieces, piece):
  _, statuses = pieces
  assert statuses[:2] == [-signal.SIGKILL, 75]
  assert statuses[-1] == 0
  assert set(statuses[2:-1]) <= {75}
  results = json.loads((piece.results / "shrunken_cpu.json").read_text())
  for ending in (".html", "_curve.png", "_compared.png"):
    assert (piece.results / f"shrunken_cpu{ending}").stat().st_size > 1000
  # Training took a minute, and each stage had its share.
  stages = results["stages"]
  assert list(stages) == [
    *("classifier", "teacher", "halve", "expert", "features", "moments"),
    *("pairs", "denoising_student"),
  ]
  for stage in stages.values():
    assert stage["images"] > 0
    assert all(r["state"] == "finished" for r in stage["rounds"].values())
  rows = {(r["model"], r["steps"]) for r in results["evaluation"]["rows"]}
  assert {("teacher", n) for n in (1, 2, 4, 8, 16)} < rows
  assert {
    *((f"halve/{n:03d}", n) for n in (16, 8, 4, 2, 1)),
    *((f"features/{n:03d}", n) for n in (4, 2, 1)),
    *((f"moments/{n:03d}", n) for n in (8, 4)),
    ("denoising_student/001", 1),
  } < rows
  assert all(row["FD-classifier"] > 0 for row in results["evaluation"]["rows"])


@pytest.mark.slow
def test_a_run_in_one_piece_gives_the_same_weights(pieces, command, tmp_path):
  """The run gets the recorded numbers of updates in place of minutes."""
  workdir, _ = pieces
  for path in workdir.rglob("clock.json"):
    (tmp_path / path.relative_to(workdir)).parent.mkdir(parents=True)
    shutil.copy(path, tmp_path / path.relative_to(workdir))
  # The pieces of these stages were killed, told to leave, and carried.
  part = "--config.run=('classifier', 'teacher', 'halve')"
  command("train", CONFIG, part, f"--workdir={tmp_path}")
  run = from_config.reopen(epath.Path(tmp_path))
  compared = []
  for name in run.rounds:
    here, _ = checkpoint.products_of(epath.Path(workdir) / name)
    for product in here:
      trees = [
        checkpoint.load_final(epath.Path(folder) / name, product, run.layout)
        for folder in (workdir, tmp_path)
      ]
      for a, b in zip(*map(jax.tree.leaves, trees), strict=True):
        assert np.array_equal(a, b), name
      compared.append(name)
  assert {"classifier", "teacher", "halve/008", "halve/001"} < set(compared)
