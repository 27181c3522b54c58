"""A config chooses the writer of its metrics; a missing package is refused."""

import importlib.util
import os
import sys

import pytest
from etils import epath

from diffdistill.system.files import read_json
from diffdistill.training.writers import (
  WRITERS,
  NoWriter,
  check_installed,
  check_writer,
  open_writer,
)

TWO_STARTS = """
import sys
from etils import epath
from diffdistill.training.writers import open_writer

for start in (0, 1):
  writer = open_writer("wandb", epath.Path(sys.argv[1]), {"seed": 7}, print)
  writer.write("halve/004", 10 + start, {"student/loss": 0.125 + start})
  writer.write("halve/002", 5, {"images": 80})
  writer.close()
"""


def test_an_unknown_writer_is_refused():
  with pytest.raises(
    ValueError, match=r"^writer is 'wand'; pass one of .*wandb"
  ):
    check_writer("wand")


@pytest.mark.parametrize(
  ("kind", "package"), [("wandb", "wandb"), ("tensorboard", "clu")]
)
def test_a_writer_without_its_package_is_refused(kind, package, monkeypatch):
  monkeypatch.setitem(sys.modules, package, None)
  with pytest.raises(ValueError, match=rf"{package}.*'\.\[{kind}\]'"):
    check_installed(kind)


def test_a_folder_of_runs_is_not_the_package(tmp_path, monkeypatch):
  (tmp_path / "wandb").mkdir()
  monkeypatch.setattr(sys, "path", [str(tmp_path)])
  with pytest.raises(ValueError, match="wandb cannot be imported"):
    check_installed("wandb")


def test_no_writer_needs_no_package(monkeypatch, tmp_path):
  for packages in WRITERS.values():
    for package in packages:
      monkeypatch.setitem(sys.modules, package, None)
  for kind in ("if_installed", "none"):
    check_installed(kind)
    writer = open_writer(kind, epath.Path(tmp_path), {}, print)
    assert isinstance(writer, NoWriter)


def test_a_run_that_goes_on_is_one_run_of_weights_and_biases(
  children, tmp_path
):
  if importlib.util.find_spec("wandb") is None:
    pytest.skip("wandb is not installed: pip install wandb")
  done = children.run(
    *(sys.executable, "-W", "error", "-c", TWO_STARTS, tmp_path),
    env={**os.environ, "WANDB_MODE": "offline"},
    check=True,
  )
  name = read_json(epath.Path(tmp_path) / "wandb.json")["id"]
  first, second = done.stdout.splitlines()
  assert first.startswith(f"Weights & Biases has the metrics as run {name}:")
  assert done.stderr == ""
  runs = sorted(tmp_path.glob("wandb/offline-run-*"))
  assert [f"`wandb sync {run}` uploads it" for run in runs] == [
    line.partition(": ")[2] for line in (first, second)
  ]
  values = ((b"10", b"0.125"), (b"11", b"1.125"))
  for run, (step, loss) in zip(runs, values, strict=True):
    (written,) = run.glob("*.wandb")
    data = written.read_bytes()
    for part in (b"halve/004/student/loss", loss, b"halve/004/step", step):
      assert part in data
    assert name.encode() in data


def test_a_training_without_its_writer_is_refused_before_it_begins(
  refuse, write_config, small_config, tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, "wandb", None)
  config = write_config({**small_config, "writer": "wandb"})
  workdir = tmp_path / "new"
  line = refuse(1, "train", f"--config={config}", f"--workdir={workdir}")
  assert line == (
    "writer is 'wandb', but wandb cannot be imported; run `pip install"
    " '.[wandb]'` in a checkout of diffdistill, or pass writer=none"
  )
  assert not workdir.exists()
