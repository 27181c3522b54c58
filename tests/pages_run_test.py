"""The commands of the pages run one after the other, with tiny recipes."""

import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from diffdistill.run import recipes, speed
from tests import pages, shrunken_recipes

# A pattern for command lines that cannot run here, and the reason.
NOT_HERE = {
  r"^plan ": "the compiler of a pod is no part of the usual environment",
  r"--multihost": "several processes are needed",
  r"gs://": "a bucket is needed",
  r"--inception=": "the weights of FID's network cannot be had",
  r"--settings=": "the file of another framework is needed",
  r"--format=diffusers": "the tiny network is no U-Net",
  r"folder:all|runs/all": "tests of training train all papers",
}
PICTURES = 150  # of each class, enough for a classifier that judges


def skipped(line):
  return any(re.search(pattern, line) for pattern in NOT_HERE)


@pytest.fixture
def here(tmp_path, monkeypatch):
  """Works in an empty folder with pictures, where every recipe is tiny."""
  monkeypatch.chdir(tmp_path)
  random = np.random.default_rng(0)
  for name, brightness in (("dark", 0), ("bright", 127)):
    pathlib.Path("photos", name).mkdir(parents=True)
    for i in range(PICTURES):
      pixels = random.integers(0, 128, (8, 8), np.uint8) + np.uint8(brightness)
      Image.fromarray(pixels).save(f"photos/{name}/{i}.png")
  located = recipes.located

  def tiny(recipe, *others):
    # The file that init wrote is the config of `folder`, with another name.
    name = recipe.replace("my.py:", "folder:")
    located(name, *others)
    return f"{shrunken_recipes.__file__}:{name}"

  monkeypatch.setattr(recipes, "located", tiny)
  monkeypatch.setattr(speed, "measured_speed", lambda: 1e10)


@pytest.mark.slow
def test_the_commands_of_the_pages_run(here, run_cli, capsys):
  digits = ("train", "--config=digits:progressive")
  assert run_cli(*digits, "--workdir=runs/digits") == 0
  # A second run to compare, and a teacher from elsewhere.
  shutil.copytree("runs/digits", "runs/other")
  teacher = ("--round=teacher", "--out=ddpm-cifar10-32")
  assert run_cli("export", "--workdir=runs/digits", *teacher) == 0
  ran = set()
  for page in pages.PAGES:
    for _, *words in pages.commands(page, {"diffdistill"}):
      line = " ".join(words)
      if line in ran or skipped(line):
        continue
      # Large numbers of images take long, and nothing is learned from them.
      words = [re.sub(r"(?<=num_images=)\d{3,}", "60", w) for w in words]
      capsys.readouterr()
      assert run_cli(*words) == 0, f"{line}\n{capsys.readouterr().err}"
      ran.add(line)
  assert len(ran) > 20
  for made in ("grid.png", "report.html", "data/cifar10_train.npz"):
    assert pathlib.Path(made).stat().st_size
