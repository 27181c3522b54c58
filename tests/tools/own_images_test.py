"""One command trains on a folder of pictures; a user can write a config."""

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from diffdistill.configs import folder
from diffdistill.run import speed


@pytest.fixture
def photos(tmp_path):
  """A folder with two classes of twelve pictures each."""
  random = np.random.default_rng(0)
  for name in ("cats", "dogs"):
    (tmp_path / "photos" / name).mkdir(parents=True)
    for i in range(12):
      pixels = random.integers(0, 256, (16, 20, 3), np.uint8)
      Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
  return tmp_path / "photos"


@pytest.fixture
def shrunken(tmp_path):
  """A file of a recipe with a tiny network and few updates."""
  path = tmp_path / "shrunken.py"
  path.write_text("""
from diffdistill.configs import folder

def get_config(recipe="progressive"):
  config = folder.get_config(recipe)
  config.model.network = {"kind": "mlp", "width": 8, "depth": 1}
  for stage in config.stages.values():
    stage.num_updates = 4
    stage.optimizer.warmup = 0
  config.stages.halve.start_steps = 4
  return config
""")
  return path


@pytest.mark.slow
def test_one_command_trains_on_a_folder_of_pictures(
  photos, shrunken, tmp_path, run_cli, capsys, monkeypatch
):
  monkeypatch.setattr(speed, "measured_speed", lambda: 1e10)
  workdir = tmp_path / "runs" / "photos"
  command = (
    "train",
    f"--config={shrunken}",
    f"--config.data.source.path={photos}",
    f"--workdir={workdir}",
    "--config.minutes=3",
  )
  assert run_cli(*command) == 0
  said = capsys.readouterr().err
  assert "24 images of 16x16x3 in 2 classes (cats 12, dogs 12)" in said
  assert "chosen for these images: 16x16 pixels" in said
  assert "10 GFLOP/s" in said
  assert "about 3 minutes of training (teacher 1.91, halve 1.09)" in said
  assert f"pictures: {workdir}/samples/teacher.png" in said
  assert (workdir / "samples" / "halve_001.png").exists()
  config = json.loads((workdir / "config.json").read_text())
  assert config["data"]["conditional"] is True
  assert config["run"] == ["teacher", "halve"]
  monkeypatch.setattr(speed, "measured_speed", pytest.fail)
  assert run_cli(*command) == 0
  said = capsys.readouterr().err
  assert "chosen before" in said
  assert "minutes of training" not in said
  assert json.loads((workdir / "config.json").read_text()) == config


def test_the_config_that_init_writes_equals_the_recipe(
  tmp_path, run_cli, refuse, capsys
):
  out = tmp_path / "my.py"
  assert run_cli("init", f"--out={out}") == 0
  assert f"--config={out}:progressive" in capsys.readouterr().out
  text = out.read_text()
  assert len(text.splitlines()) < 60
  assert f"--config={out}:progressive" in text
  spec = importlib.util.spec_from_file_location("my", out)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  for recipe in folder.RECIPES:
    ours, theirs = (m.get_config(recipe) for m in (module, folder))
    assert ours.to_dict() == theirs.to_dict()
  assert "exists already" in refuse(1, "init", f"--out={out}")
  assert "such as my.py" in refuse(1, "init", f"--out={tmp_path}/my.txt")
  assert out.read_text() == text


def test_the_command_line_sets_an_automatic_field(
  photos, shrunken, tmp_path, refuse
):
  said = refuse(
    1,
    "train",
    f"--config={shrunken}",
    f"--config.data.source.path={photos}",
    f"--workdir={tmp_path / 'runs'}",
    "--config.data.source.image_size=16",
    "--config.stages.teacher.batch_size=many",
  )
  assert said.startswith("stages.teacher.batch_size is 'many'")
