"""Tests runs whose data moved, changed or has an unusable shape."""

import shutil

import numpy as np
import pytest
from etils import epath

from diffdistill.run import from_config
from diffdistill.system.files import read_json, write_json

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 2, 2, 1), np.uint8)


@pytest.fixture
def without_data(finished_run, tmp_path):
  """Makes a finished workdir on a machine that lacks the data of the run."""
  workdir = tmp_path / "run"
  shutil.copytree(finished_run, workdir)
  config = read_json(workdir / "config.json")
  config["data"]["source"]["path"] = str(tmp_path / "nowhere.npz")
  write_json(workdir / "config.json", config)
  return workdir


def _npz(path, images, labels):
  np.savez(path, image=images, label=labels)
  return f"--config.data.source.path={path}"


def test_commands_that_need_no_images_work_without_the_data(
  without_data, run_cli, tmp_path, capsys
):
  workdir = f"--workdir={without_data}"
  sheet, folder = tmp_path / "s.png", tmp_path / "exported"
  assert run_cli("sample", workdir, "--num_images=2", f"--out={sheet}") == 0
  assert sheet.exists()
  assert run_cli("export", workdir, f"--out={folder}") == 0
  assert (folder / "model.safetensors").exists()
  page = tmp_path / "report.html"
  assert run_cli("report", workdir, f"--out={page}") == 0
  assert "cannot be built here" not in page.read_text()


def test_commands_that_need_images_name_the_missing_data(
  without_data, refuse, tmp_path
):
  message = refuse(1, "evaluate", f"--workdir={without_data}")
  assert f"{tmp_path / 'nowhere.npz'} does not exist" in message


@pytest.mark.parametrize(
  ("images", "labels", "words"),
  [
    (IMAGES[:40], np.arange(40) % 3, "number of images is 50 there and 40"),
    (IMAGES, np.arange(50) % 2, "number of classes is 3 there and 2"),
    (IMAGES, (1 + np.arange(50)) % 3, "class 0 has 17 images there and 16"),
    (255 - IMAGES, np.arange(50) % 3, "the images and labels differ"),
  ],
)
def test_a_run_does_not_go_on_with_other_data(
  finished_run, config_file, refuse, tmp_path, images, labels, words
):
  path = _npz(tmp_path / "other.npz", images, labels)
  before = (finished_run / "config.json").read_bytes()
  message = refuse(
    1, "train", f"--config={config_file}", f"--workdir={finished_run}", path
  )
  assert "was made with other data" in message
  assert words in message
  assert (finished_run / "config.json").read_bytes() == before


@pytest.mark.parametrize(
  ("shape", "guess"),
  [((50, 3, 8, 8), "are channels first?"), ((50, 8, 8, 4), "transparency?")],
)
def test_images_that_cannot_be_shown_are_refused_before_training(
  train, refuse, tmp_path, shape, guess
):
  images, labels = np.zeros(shape, np.uint8), np.arange(50) % 3
  message = refuse(1, *train, _npz(tmp_path / "odd.npz", images, labels))
  assert guess in message


def test_no_image_is_drawn_of_a_class_without_images(small_config, tmp_path):
  path = tmp_path / "from_one.npz"
  np.savez(path, image=IMAGES, label=1 + np.arange(50) % 2)
  source = {**small_config["data"]["source"], "path": str(path)}
  data = {**small_config["data"], "source": source}
  run = from_config.build({**small_config, "data": data})
  sampler = run.stages[1].objective.sampler
  labels = run.generator(sampler, 8).labels_of(0, 30)
  assert np.bincount(labels).tolist() == [0, 15, 15]
  with pytest.raises(ValueError, match="label is 0, but the data has no image"):
    run.generator(sampler, 8, label=0)


def test_carry_copies_the_record_of_the_data(finished_run, run_cli, tmp_path):
  out = tmp_path / "small"
  command = ("carry", f"--workdir={finished_run}", f"--out={out}")
  assert run_cli(*command) == 0
  facts = from_config.reopen(epath.Path(out)).source.facts
  assert (facts.num_images, facts.label_counts) == (50, (17, 17, 16))
