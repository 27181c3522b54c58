"""Tests that a run that is killed ten times makes the same weights."""

import json
import os
import pathlib
import sys

import jax
import numpy as np
import pytest
from etils import epath

from diffdistill.training import checkpoint
from diffdistill.training.sharding import Layout

SCRIPT = pathlib.Path(__file__).parent / "killed_run.py"
ROOT = SCRIPT.parent.parent.parent
ROUNDS = ("teacher", "halve/004", "halve/002", "halve/001")


@pytest.mark.slow
def test_a_run_killed_ten_times_makes_the_same_weights(
  tiny_config, children, tmp_path, mesh_of
):
  # The run records each update, so that the script knows how far the run is.
  config = {**tiny_config, "cadence": {"log": 1, "checkpoint": 5}}
  path = tmp_path / "config.json"
  path.write_text(json.dumps(config))

  def run(workdir, *seed):
    (tmp_path / workdir).mkdir()
    # The run has one device and uses no hooks, as a user's run.
    return children.run(
      *(sys.executable, SCRIPT, path),
      *(tmp_path / workdir, tmp_path / "cache", *seed),
      env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

  for done in (run("peace"), run("killed", "7")):
    assert done.returncode == 0, done.stderr
  kills = [int(line) for line in done.stdout.split()]
  assert len(kills) == 10
  # Check that the kills came while the run trained, in its first and its second
  # half.
  assert kills[0] < 36
  assert kills[-1] > 54
  for name in ROUNDS:
    expected, actual = (
      checkpoint.load_final(
        epath.Path(tmp_path / workdir / name),
        "teacher" if name == "teacher" else "student",
        Layout(mesh=mesh_of(1)),
      )
      for workdir in ("peace", "killed")
    )
    assert jax.tree.structure(expected) == jax.tree.structure(actual)
    for a, b in zip(
      jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True
    ):
      assert np.array_equal(a, b), name
  records = [
    [
      (record["round"], record["step"])
      for record in map(json.loads, lines.splitlines())
    ]
    for lines in (
      (tmp_path / workdir / "metrics.jsonl").read_text()
      for workdir in ("peace", "killed")
    )
  ]
  assert records[0] == records[1]
  assert len(set(records[0])) == len(records[0]) == 4 * 18
