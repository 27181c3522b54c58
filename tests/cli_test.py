"""The command line, in this process: what it makes and what it refuses."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

from diffdistill import cli, commands
from diffdistill.data import SOURCES
from diffdistill.objectives import OBJECTIVES

# ml_collections loads a config file by a method that Python 3.11 deprecates.
pytestmark = pytest.mark.filterwarnings(
  "ignore:the load_module:DeprecationWarning"
)

CLASSIFIER_STAGE = {
  "objective": {"kind": "classification"},
  "optimizer": {"learning_rate": 1e-3},
  "num_updates": 2,
  "batch_size": 8,
}


@pytest.fixture(scope="module")
def config_file(tiny_config, tmp_path_factory):
  """A config file of a classifier, a teacher and one student: 2 updates each.

  Its recipes are the mistakes that a config file can make.
  """
  path = tmp_path_factory.mktemp("configs") / "tiny.py"
  stages = {
    name: {**stage, "num_updates": 2}
    for name, stage in tiny_config["stages"].items()
  }
  stages["halve"]["start_steps"] = 2
  fields = {
    **tiny_config,
    "run": ("classifier", "teacher", "halve"),
    "classifier": {
      "kind": "resnet",
      "channels": 4,
      "multipliers": (1,),
      "num_blocks": 1,
    },
    "stages": {**stages, "classifier": CLASSIFIER_STAGE},
    "evaluation": {"num_images": 24, "batch_size": 8, "num_steps": (1, 2)},
  }
  path.write_text(f"""
from ml_collections import ConfigDict

RECIPES = ("plain", "misspelt", "crash")

def get_config(recipe="plain"):
  config = ConfigDict({fields!r})
  if recipe not in RECIPES:
    raise ValueError(f"recipe is {{recipe!r}}; pass one of {{RECIPES}}")
  if recipe == "misspelt":
    config.stages.halve.num_update = 3
  if recipe == "crash":
    config.nothing.nothing = 3
  return config
""")
  return path


def run_cli(*arguments):
  """Runs a command as if it were the first of its process."""
  with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "argv", ["diffdistill", *map(str, arguments)])
    try:
      return cli.main()
    finally:
      cli.FLAGS.unparse_flags()


@pytest.fixture
def refuse(capsys):
  """Runs a command that must be refused in one line, which it returns."""

  def run(status, *arguments):
    assert run_cli(*arguments) == status
    printed = capsys.readouterr()
    *progress, line = printed.err.splitlines()
    assert all(re.fullmatch(r"\w+: .* parameters .*", p) for p in progress)
    assert line.startswith("diffdistill: ")
    assert "Traceback" not in line
    return line.removeprefix("diffdistill: ")

  return run


@pytest.fixture(scope="module")
def finished(config_file, tmp_path_factory):
  """The workdir of a run of the config file."""
  workdir = tmp_path_factory.mktemp("runs") / "tiny"
  assert (
    run_cli("train", f"--config={config_file}", f"--workdir={workdir}") == 0
  )
  return workdir


@pytest.fixture
def train(config_file, tmp_path):
  """The arguments of a training; its workdir must not come into being."""
  workdir = tmp_path / "runs" / "new"
  yield ("train", f"--config={config_file}", f"--workdir={workdir}")
  assert not workdir.exists()


def test_a_training_fills_its_workdir(finished):
  assert {path.name for path in finished.iterdir()} == {
    "classifier",
    "config.json",
    "halve",
    "metrics.jsonl",
    "samples",
    "teacher",
  }
  sheets = sorted(path.name for path in (finished / "samples").iterdir())
  assert sheets == ["halve_001.png", "teacher.png"]


def test_a_finished_training_has_nothing_to_do(finished, config_file):
  def times():
    paths = [p for p in finished.rglob("*") if p.name != "config.json"]
    return {path: path.stat().st_mtime_ns for path in paths}

  before = times()
  # Another cadence is not another training.
  assert (
    run_cli(
      "train",
      f"--config={config_file}",
      f"--workdir={finished}",
      "--config.cadence.log=7",
    )
    == 0
  )
  assert times() == before


def test_samples_are_a_sheet_or_bytes(finished, tmp_path, capsys):
  sheet, archive = tmp_path / "grid.png", tmp_path / "images.npz"
  common = ("sample", f"--workdir={finished}", "--num_images=5")
  assert run_cli(*common, f"--out={sheet}") == 0
  assert "5 images of halve/001 in 1 steps" in capsys.readouterr().out
  with Image.open(sheet) as opened:
    assert opened.size[0] >= 2 * 2
  assert run_cli(*common, "--round=teacher", f"--out={archive}") == 0
  images = np.load(archive)["images"]
  assert (images.shape, images.dtype) == ((5, 2, 2, 1), np.uint8)
  assert "5 images of teacher in 2 steps" in capsys.readouterr().out


def test_a_seed_and_a_label_make_other_images(finished, tmp_path):
  images = {}
  for flags in ((), ("--seed=0",), ("--seed=1",), ("--label=2",)):
    out = tmp_path / "images.npz"
    run_cli("sample", f"--workdir={finished}", f"--out={out}", *flags)
    images[flags] = np.load(out)["images"]
  default, *others = images.values()
  same = [np.array_equal(default, other) for other in others]
  # This student hardly knows its labels yet, but by more than a grey level.
  assert same == [True, False, False]


def test_evaluation_judges_every_model(finished, capsys):
  assert run_cli("evaluate", f"--workdir={finished}") == 0
  table = capsys.readouterr().out
  written = json.loads((finished / "evaluation.json").read_text())
  rows = [(row["model"], row["steps"]) for row in written["rows"]]
  assert rows == [("teacher", 2), ("teacher", 1), ("halve/001", 1)]
  assert written["metric"] == "FD-classifier"
  assert "halve/001" in table
  assert (finished / "evaluation.png").stat().st_size > 1000
  assert (finished / "samples" / "compared.png").exists()


def test_help_and_list_say_what_there_is(capsys):
  for arguments in ((), ("help",), ("--help",), ("-h",), ("train", "--help")):
    assert run_cli(*arguments) == 0
    assert capsys.readouterr().out.startswith("usage: diffdistill COMMAND")
  assert run_cli("list") == 0
  listed = capsys.readouterr().out
  for name in (*OBJECTIVES, *SOURCES, "unet", "mlp", "resnet", "ddim", "heun"):
    assert re.search(rf"^  {name} +\w", listed, re.MULTILINE), name
  assert re.search(r"^  configs/digits\.py:progressive +\w", listed, re.M)


@pytest.mark.parametrize(
  ("arguments", "line"),
  [
    (["nope"], "'nope' is no command; pass one of train, sample, evaluate"),
    (["train", "--nope=3"], "--nope is no flag; see diffdistill help"),
    (["train", "stray"], "'stray' is no flag; pass --name=value"),
    (["train"], "--config is missing; see diffdistill help"),
    (["train", "--config="], "--config cannot be read"),
    (["train", "--config=configs/nope.py"], "'configs/nope.py'); pass a file"),
    (
      ["train", "--config=configs/nope.py", "--config.seed=3"],
      "'configs/nope.py'); pass a file and its recipe, such as configs/digits",
    ),
    (
      ["train", "--config=configs/digits.py:nope"],
      "--config=configs/digits.py:nope: recipe is 'nope'; pass one of progr",
    ),
    (["train", "--config=configs/digits.py"], "--workdir is missing"),
    (["sample"], "--workdir is missing"),
    (["sample", "--workdir="], "--workdir is missing"),
    (["evaluate"], "--workdir is missing"),
    (
      ["sample", "--workdir=x", "--num_images=many"],
      "--num_images=many cannot be read; pass a whole number",
    ),
    (["sample", "--workdir=x", "--num_steps=1,2"], "sample takes one"),
    (
      ["evaluate", "--workdir=x", "--num_steps=0"],
      "--num_steps is '0'; pass p",
    ),
    (["evaluate", "--workdir=x", "--num_steps="], "--num_steps is ''; pass p"),
    (["evaluate", "--workdir"], "Missing value for flag --workdir"),
  ],
)
def test_bad_usage_is_status_2(refuse, arguments, line):
  assert line in refuse(2, *arguments)


@pytest.mark.parametrize(
  ("flag", "line"),
  [
    ("--config.seed=abc", "--config.seed=abc cannot be read; pass a whole num"),
    (
      "--config.stages.teacher.optimizer.learning_rate=fast",
      "learning_rate=fast cannot be read; pass a number",
    ),
    (
      "--config.stages.halve.num_update=3",
      "--config.stages.halve.num_update is no field of the config; did you mean"
      " num_updates?",
    ),
    (
      "--config.stages.halve.optimizer.b1=0.5",
      "optimizer.b1 is no field of the config; add it to its file",
    ),
  ],
)
def test_a_config_flag_that_cannot_be_used_is_status_2(
  refuse, train, flag, line
):
  assert line in refuse(2, *train, flag)


@pytest.mark.parametrize(
  ("flag", "line"),
  [
    ("--config.seed=-1", "seed is -1; pass 0 to 2**32 - 1"),
    ("--config.run=teach", "run names the stage 'teach'; pass some of"),
    ("--config.run=()", "run is (); pass a tuple of stages"),
    ("--config.stages.halve.start_steps=24", "start_steps=24 to end_steps=1"),
    ("--config.data.source.path=/no/such.npz", "/no/such.npz does not exist"),
    ("--config.data.source.kind=cifar", "data.source.kind is 'cifar'; pass"),
    (
      "--config.stages.teacher.batch_size=12",
      "stages.teacher.batch_size is 12, which the 8 devices do not divide",
    ),
  ],
)
def test_a_config_that_cannot_be_trained_is_status_1(refuse, train, flag, line):
  assert line in refuse(1, *train, flag)


def test_a_misspelt_field_in_a_config_file(refuse, config_file, tmp_path):
  line = refuse(
    1, "train", f"--config={config_file}:misspelt", f"--workdir={tmp_path}/new"
  )
  assert (
    line == "stages.halve.num_update is no field; did you mean num_updates?"
  )
  assert list(tmp_path.iterdir()) == []


def test_a_config_file_that_fails(refuse, config_file, tmp_path):
  line = refuse(
    2, "train", f"--config={config_file}:crash", f"--workdir={tmp_path}/new"
  )
  assert "--config cannot be read (" in line
  assert "nothing" in line
  broken = tmp_path / "broken.py"
  broken.write_text("def get_config(:\n")
  line = refuse(2, "train", f"--config={broken}", "--workdir=x")
  assert "SyntaxError: invalid syntax (broken.py, line 1)" in line


def npz(path, **arrays):
  np.savez(path, **arrays)
  return f"--config.data.source.path={path}"


def test_labels_out_of_range(refuse, train, finished, tmp_path):
  image = np.zeros((8, 2, 2, 1), np.uint8)
  label = np.array([0, 1, 2, -1, 0, 1, 2, 0])
  flag = npz(tmp_path / "bad.npz", image=image, label=label)
  assert "holds -1; number the classes from 0" in refuse(1, *train, flag)
  line = refuse(1, "sample", f"--workdir={finished}", "--label=11")
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
  # Nothing is lost: with the image mended, the same command goes on.
  Image.fromarray(np.zeros((2, 2), np.uint8)).save(bad)
  assert run_cli("train", f"--config={config}", f"--workdir={workdir}") == 0


def test_a_workdir_of_another_config(refuse, finished, config_file):
  before = (finished / "config.json").read_bytes()
  line = refuse(
    1,
    "train",
    f"--config={config_file}",
    f"--workdir={finished}",
    "--config.seed=8",
  )
  assert line == (
    f"{finished} was made with another config: seed is 3 there and 8 here; pass"
    " a new --workdir, or the config it was made with"
  )
  assert (finished / "config.json").read_bytes() == before


def test_a_round_that_is_not_there(refuse, finished, tmp_path):
  line = refuse(
    1,
    "sample",
    f"--workdir={finished}",
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


def test_places_that_cannot_be_written(refuse, finished, config_file, tmp_path):
  # Permissions do not stop root; a file in the way of a folder does.
  file = tmp_path / "file"
  file.write_text("precious")
  for workdir in (file, file / "sub"):
    line = refuse(1, "train", f"--config={config_file}", f"--workdir={workdir}")
    assert line.startswith(str(file))
    assert line.endswith("pass a place that can be read and written")
  out = file / "grid.png"
  line = refuse(1, "sample", f"--workdir={finished}", f"--out={out}")
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
def test_samples_that_cannot_be(refuse, finished, flag, line):
  assert line in refuse(1, "sample", f"--workdir={finished}", flag)


def test_too_few_images_to_judge(refuse, finished):
  line = refuse(1, "evaluate", f"--workdir={finished}", "--num_images=3")
  assert line == "num_images is 3; pass 20 or more"


def test_faults_of_ours_keep_their_traceback(monkeypatch, finished):
  def fault(*_):
    return {}["missing"]

  monkeypatch.setattr(commands, "evaluate", fault)
  with pytest.raises(KeyError):
    run_cli("evaluate", f"--workdir={finished}")
  monkeypatch.setattr(commands, "evaluate", lambda *_: jax.numpy.zeros(-1))
  with pytest.raises(Exception, match="-1"):
    run_cli("evaluate", f"--workdir={finished}")


def test_an_interruption_says_how_to_go_on(monkeypatch, refuse, finished):
  def interrupt(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(commands, "evaluate", interrupt)
  line = refuse(130, "evaluate", f"--workdir={finished}")
  assert line.startswith("interrupted; the same command goes on from")


def test_the_program_itself():
  done = subprocess.run(
    [sys.executable, "-m", "diffdistill", "nope"],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stdout == ""
  assert done.stderr.startswith("diffdistill: 'nope' is no command; pass one")
  assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
  ("arguments", "line"),
  [
    (("sample", "--workdir=x", "--config=configs/digits.py"), "--config"),
    (("evaluate", "--workdir=x", "--seed=3"), "--seed"),
    (("train", "--workdir=x", "--num_steps=3"), "--num_steps"),
    (("list", "--workdir=x"), "--workdir"),
  ],
)
def test_a_flag_of_another_command_is_refused_not_ignored(
  refuse, arguments, line
):
  command = arguments[0]
  assert refuse(2, *arguments).startswith(f"{command} does not read {line}; ")
