"""What commands make, and what they refuse once their flags are read."""

import json

import numpy as np
import pytest
from PIL import Image


def test_a_training_fills_its_workdir(finished_run):
  assert {path.name for path in finished_run.iterdir()} == {
    "classifier",
    "config.json",
    "halve",
    "metrics.jsonl",
    "samples",
    "teacher",
  }
  sheets = sorted(path.name for path in (finished_run / "samples").iterdir())
  assert sheets == ["halve_001.png", "teacher.png"]


def test_a_finished_training_has_nothing_to_do(
  finished_run, config_file, run_cli
):
  def times():
    paths = [p for p in finished_run.rglob("*") if p.name != "config.json"]
    return {path: path.stat().st_mtime_ns for path in paths}

  before = times()
  # Another cadence is not another training.
  assert (
    run_cli(
      "train",
      f"--config={config_file}",
      f"--workdir={finished_run}",
      "--config.cadence.log=7",
    )
    == 0
  )
  assert times() == before


def test_samples_are_a_sheet_or_bytes(finished_run, tmp_path, capsys, run_cli):
  sheet, archive = tmp_path / "grid.png", tmp_path / "images.npz"
  common = ("sample", f"--workdir={finished_run}", "--num_images=5")
  assert run_cli(*common, f"--out={sheet}") == 0
  assert "5 images of halve/001 in 1 steps" in capsys.readouterr().out
  with Image.open(sheet) as opened:
    assert opened.size[0] >= 2 * 2
  assert run_cli(*common, "--round=teacher", f"--out={archive}") == 0
  images = np.load(archive)["images"]
  assert (images.shape, images.dtype) == ((5, 2, 2, 1), np.uint8)
  assert "5 images of teacher in 2 steps" in capsys.readouterr().out


def test_a_seed_and_a_label_make_other_images(finished_run, tmp_path, run_cli):
  images = {}
  for flags in ((), ("--seed=0",), ("--seed=1",), ("--label=2",)):
    out = tmp_path / "images.npz"
    run_cli("sample", f"--workdir={finished_run}", f"--out={out}", *flags)
    images[flags] = np.load(out)["images"]
  default, *others = images.values()
  same = [np.array_equal(default, other) for other in others]
  # This student hardly knows its labels yet, but by more than a grey level.
  assert same == [True, False, False]


def test_evaluation_judges_every_model(finished_run, capsys, run_cli):
  assert run_cli("evaluate", f"--workdir={finished_run}") == 0
  table = capsys.readouterr().out
  written = json.loads((finished_run / "evaluation.json").read_text())
  rows = [(row["model"], row["steps"]) for row in written["rows"]]
  assert rows == [("teacher", 2), ("teacher", 1), ("halve/001", 1)]
  assert written["metric"] == "FD-classifier"
  assert "halve/001" in table
  assert (finished_run / "evaluation.png").stat().st_size > 1000
  assert (finished_run / "samples" / "compared.png").exists()


def npz(path, **arrays):
  np.savez(path, **arrays)
  return f"--config.data.source.path={path}"


def test_labels_out_of_range(refuse, train, finished_run, tmp_path):
  image = np.zeros((8, 2, 2, 1), np.uint8)
  label = np.array([0, 1, 2, -1, 0, 1, 2, 0])
  flag = npz(tmp_path / "bad.npz", image=image, label=label)
  assert "holds -1; number the classes from 0" in refuse(1, *train, flag)
  line = refuse(1, "sample", f"--workdir={finished_run}", "--label=11")
  assert line.startswith(
    "label is 11, but this model has 3 classes; pass a lab"
  )


def test_a_corrupt_image_stops_the_training(refuse, config_file, tmp_path):
  folder = tmp_path / "images" / "one"
  folder.mkdir(parents=True)
  for i in range(8):
    Image.fromarray(np.full((2, 2), 30 * i, np.uint8)).save(folder / f"{i}.png")
  bad = folder / "5.png"
  bad.write_bytes(bad.read_bytes()[:20])
  source = {
    "kind": "folder",
    "split": "train",
    "path": str(tmp_path / "images"),
    "image_size": 2,
    "channels": 1,
  }
  text = config_file.read_text().replace(
    "return config",
    'config.run = ("teacher",)\n'
    f"  config.data.source = ConfigDict({source!r})\n"
    "  return config",
  )
  config = tmp_path / "folder.py"
  config.write_text(text)
  workdir = tmp_path / "run"
  line = refuse(1, "train", f"--config={config}", f"--workdir={workdir}")
  assert line.startswith(f"{bad} cannot be decoded (")
  assert line.endswith("; replace or remove it")
  assert not (workdir / "teacher" / "final").exists()


def test_a_workdir_of_another_config(refuse, finished_run, config_file):
  before = (finished_run / "config.json").read_bytes()
  line = refuse(
    1,
    "train",
    f"--config={config_file}",
    f"--workdir={finished_run}",
    "--config.seed=8",
  )
  assert line == (
    f"{finished_run} was made with another config: seed is 3 there and 8 here;"
    " pass a new --workdir, or the config it was made with"
  )
  assert (finished_run / "config.json").read_bytes() == before


def test_a_round_that_is_not_there(refuse, finished_run, tmp_path):
  line = refuse(
    1,
    "sample",
    f"--workdir={finished_run}",
    "--round=halve/016",
    f"--out={tmp_path}/x.png",
  )
  assert line == (
    "round is 'halve/016', which is not finished or does not exist; pass one of"
    " teacher, halve/001"
  )
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_folder_without_a_run(refuse, tmp_path, command):
  line = refuse(1, command, f"--workdir={tmp_path}")
  assert line.startswith(f"{tmp_path} holds no run (it has no config.json)")
  assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(
  refuse, finished_run, config_file, tmp_path
):
  # Permissions do not stop root; a file in the way of a folder does.
  file = tmp_path / "file"
  file.write_text("precious")
  for workdir in (file, file / "sub"):
    line = refuse(1, "train", f"--config={config_file}", f"--workdir={workdir}")
    assert line.startswith(str(file))
    assert line.endswith("pass a place that can be read and written")
  out = file / "grid.png"
  line = refuse(1, "sample", f"--workdir={finished_run}", f"--out={out}")
  assert line.startswith(str(file))
  assert file.read_text() == "precious"


@pytest.mark.parametrize(
  ("flag", "line"),
  [
    ("--out=grid.jpg", "out is 'grid.jpg'; pass a name that ends in .png or"),
    ("--seed=-1", "seed and image numbers must be in [0, 2^32), got -1"),
    ("--num_images=0", "num_images is 0; pass 1 or more"),
    ("--num_images=-4", "num_images is -4; pass 1 or more"),
  ],
)
def test_samples_that_cannot_be(refuse, finished_run, flag, line):
  assert line in refuse(1, "sample", f"--workdir={finished_run}", flag)


def test_too_few_images_to_judge(refuse, finished_run):
  line = refuse(1, "evaluate", f"--workdir={finished_run}", "--num_images=3")
  assert line == "num_images is 3; pass 20 or more"
