"""The commands write the right files, and refuse what they cannot do."""

import copy
import json
import pathlib
import runpy
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file


def test_a_training_fills_its_workdir(finished_run):
  assert {path.name for path in finished_run.iterdir()} == {
    "classifier",
    "config.json",
    "data.json",
    "environment.json",
    "halve",
    "metrics.jsonl",
    "samples",
    "teacher",
  }
  sheets = sorted(path.name for path in (finished_run / "samples").iterdir())
  assert sheets == ["halve_001.png", "teacher.png"]


def test_a_finished_run_is_not_changed_by_train(
  finished_run, config_file, run_cli
):
  def times():
    paths = [p for p in finished_run.rglob("*") if p.name != "config.json"]
    return {path: path.stat().st_mtime_ns for path in paths}

  before = times()
  # A finished run may be called again with another cadence.
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


def test_samples_are_a_png_sheet_or_an_npz_of_bytes(
  finished_run, tmp_path, capsys, run_cli
):
  sheet, archive = tmp_path / "grid.png", tmp_path / "images.npz"
  common = ("sample", f"--workdir={finished_run}", "--num_images=5")
  assert run_cli(*common, f"--out={sheet}") == 0
  assert "5 images of halve/001 in 1 step:" in capsys.readouterr().out
  with Image.open(sheet) as opened:
    assert opened.size[0] >= 2 * 2
  assert run_cli(*common, "--round=teacher", f"--out={archive}") == 0
  arrays = np.load(archive)
  assert arrays.files == ["arr_0", "arr_1"]
  images, labels = arrays["arr_0"], arrays["arr_1"]
  assert (images.shape, images.dtype) == ((5, 2, 2, 1), np.uint8)
  assert (labels.shape, labels.dtype) == ((5,), np.int64)
  assert len(set(labels)) > 1
  assert "5 images of teacher in 2 steps" in capsys.readouterr().out


def test_a_seed_and_a_label_make_other_images(finished_run, tmp_path, run_cli):
  images = {}
  for flags in ((), ("--seed=0",), ("--seed=1",), ("--label=2",)):
    out = tmp_path / "images.npz"
    run_cli("sample", f"--workdir={finished_run}", f"--out={out}", *flags)
    arrays = np.load(out)
    images[flags] = arrays["arr_0"]
  assert set(arrays["arr_1"]) == {2}
  default, *others = images.values()
  same = [np.array_equal(default, other) for other in others]
  # A label changes this student's images only a little, but by more than a grey
  # level.
  assert same == [True, False, False]


def test_interpolated_samples_are_one_row_per_pair_of_noises(
  finished_run, tmp_path, run_cli
):
  out = tmp_path / "images.npz"
  # After two updates the student's images are nearly grey. With this seed, no
  # two of them round to the same bytes.
  common = ("sample", f"--workdir={finished_run}", f"--out={out}", "--seed=2")
  assert run_cli(*common, "--num_images=4") == 0
  arrays = np.load(out)
  plain, of_plain = arrays["arr_0"], arrays["arr_1"]
  assert run_cli(*common, "--num_images=2", "--interpolate=3") == 0
  arrays = np.load(out)
  ways = arrays["arr_0"].reshape(2, 3, 2, 2, 1)
  # All images of a row have one label.
  of_ways = arrays["arr_1"].reshape(2, 3)
  assert of_ways.tolist() == [[label] * 3 for label in of_plain[:2]]
  # The first row begins with the noise and the label of image 0.
  np.testing.assert_array_equal(ways[0, 0], plain[0])
  assert len(np.unique(ways.reshape(6, -1), axis=0)) == 6
  sheet = tmp_path / "ways.png"
  assert (
    run_cli(
      "sample",
      f"--workdir={finished_run}",
      "--num_images=2",
      "--interpolate=3",
      f"--out={sheet}",
    )
    == 0
  )
  with Image.open(sheet) as opened:
    # The sheet has two rows of three images.
    assert opened.size[0] > opened.size[1]


def npz(path, **arrays):
  np.savez(path, **arrays)
  return f"--config.data.source.path={path}"


def test_labels_out_of_range_are_refused(refuse, train, finished_run, tmp_path):
  image = np.zeros((8, 2, 2, 1), np.uint8)
  label = np.array([0, 1, 2, -1, 0, 1, 2, 0])
  flag = npz(tmp_path / "bad.npz", image=image, label=label)
  line = refuse(1, *train, flag)
  assert "holds -1; number the classes of its 8 images from 0" in line
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


def test_a_workdir_of_another_config_is_refused(
  refuse, finished_run, config_file
):
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


def test_a_round_that_does_not_exist_is_refused(refuse, finished_run, tmp_path):
  line = refuse(
    1,
    "sample",
    f"--workdir={finished_run}",
    "--round=halve/016",
    f"--out={tmp_path}/x.png",
  )
  assert line == (
    "the model is 'halve/016', which is not finished or does not exist; pass"
    " one of teacher, halve/001"
  )
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_folder_without_a_run_is_refused(refuse, tmp_path, command):
  line = refuse(1, command, f"--workdir={tmp_path}")
  assert line.startswith(f"{tmp_path} holds no run (it has no config.json)")
  assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_refused(
  refuse, finished_run, config_file, tmp_path
):
  # Permissions do not stop root, but a file in place of a folder does.
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
    (
      "--guidance=1.5",
      "guidance weight is 1.5, but the teacher was not trained",
    ),
  ],
)
def test_samples_that_the_model_cannot_make_are_refused(
  refuse, finished_run, flag, line
):
  assert line in refuse(1, "sample", f"--workdir={finished_run}", flag)


def test_too_few_images_to_judge_are_refused(refuse, finished_run):
  line = refuse(1, "evaluate", f"--workdir={finished_run}", "--num_images=3")
  assert line == "num_images is 3; pass 20 or more"


def trained_from(config, source):
  """The config with only the stage `halve`, and a teacher outside the run."""
  config = copy.deepcopy(config)
  config["run"] = ("halve",)
  config["stages"]["halve"]["frozen"]["teacher"] = source
  return config


def test_a_teacher_of_another_run_makes_the_same_student(
  small_config, finished_run, write_config, run_cli, tmp_path
):
  config = trained_from(small_config, f"path:{finished_run}/teacher")
  workdir = tmp_path / "run"
  assert (
    run_cli("train", f"--config={write_config(config)}", f"--workdir={workdir}")
    == 0
  )
  for run in (finished_run, workdir):
    out = tmp_path / f"{run.name}.npz"
    arguments = (f"--workdir={run}", "--round=halve/001", f"--out={out}")
    assert run_cli("sample", *arguments, "--num_images=8") == 0
  ours, theirs = (
    np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("run", "tiny")
  )
  np.testing.assert_array_equal(ours, theirs)


def test_unfit_teachers_of_another_run_are_refused(
  refuse, small_config, finished_run, write_config, tmp_path
):
  for source, line in (
    (f"path:{tmp_path}/nowhere", "nowhere has no final result; train until"),
    (f"path:{finished_run}/classifier", "classifier holds no student, only"),
  ):
    config = write_config(trained_from(small_config, source))
    arguments = (f"--config={config}", f"--workdir={tmp_path}/new")
    assert line in refuse(1, "train", *arguments)
  source = f"path:{finished_run}/teacher"
  config = write_config(trained_from(small_config, source))
  line = refuse(
    1,
    "train",
    f"--config={config}",
    f"--workdir={tmp_path}/other",
    "--config.model.network.width=10",
  )
  assert line.startswith(f"stages.halve.frozen.teacher is '{source}', whose we")


MAKER = pathlib.Path(__file__).parents[1] / "interop" / "make_golden_resnet.py"


def test_a_classifier_of_other_channels_or_classes_is_refused(
  refuse, small_config, finished_run, write_config, tmp_path
):
  maker = runpy.run_path(str(MAKER))
  weights = maker["weights"](18, "cifar", seed=1)
  file = tmp_path / "resnet.safetensors"
  config = trained_from(small_config, f"path:{finished_run}/teacher")
  halve = config["stages"]["halve"]
  halve["objective"] = {"kind": "classifier_features"}
  halve["frozen"]["classifier"] = f"imported:{file}"
  halve["classifier"] = {
    "kind": "torch_resnet",
    "depth": 18,
    "stem": "cifar",
    "width": maker["WIDTH"],
  }
  path = write_config(config)

  def line():
    arguments = (f"--config={path}", f"--workdir={tmp_path}/run")
    return refuse(1, "train", *arguments)

  assert str(file) in line()  # the file is missing
  # The file has a classifier for colour images of five classes. The data has
  # grey images of three classes.
  save_file(weights, file)
  assert "conv1.weight has shape (" in line()
  grey = np.ascontiguousarray(weights["conv1.weight"][:, :1])
  save_file({**weights, "conv1.weight": grey}, file)
  assert "fc.weight has shape (5, " in line()
  # A classifier of another run has other channels.
  halve["classifier"] = {**config["classifier"], "channels": 6}
  halve["frozen"]["classifier"] = f"path:{finished_run}/classifier"
  path = write_config(config)
  assert "frozen.classifier is 'path:" in line()


@pytest.mark.parametrize(
  ("flag", "line"),
  [
    (
      "--config.stages.halve.start_steps=4",
      "stages.halve.start_steps is 4, but its teacher first/002 was made for 2"
      " steps; pass start_steps=2",
    ),
    (
      "--config.guidance.weight=1.5",
      "guidance weight is 1.5, but the teacher was not trained without its lab",
    ),
    (
      "--config.stages.halve.objective.kind=moment_matching",
      "stages.halve.objective: a moment-matching student is made for ancestral",
    ),
  ],
)
def test_stages_that_do_not_fit_together_are_refused(
  refuse, small_config, write_config, tmp_path, flag, line
):
  config = copy.deepcopy(small_config)
  halve = config["stages"]["halve"]
  config["run"] = ("teacher", "first", "halve")
  config["guidance"] = {"weight": 0.0}
  config["stages"]["first"] = {**halve, "start_steps": 4, "end_steps": 2}
  halve["frozen"] = {"teacher": "first"}
  path, workdir = write_config(config), tmp_path / "run"
  assert refuse(
    1, "train", f"--config={path}", f"--workdir={workdir}", flag
  ).startswith(line)
  assert not workdir.exists()


def test_a_student_without_a_number_of_steps_is_refused(
  refuse, small_config, write_config, tmp_path
):
  config = copy.deepcopy(small_config)
  halve = config["stages"]["halve"]
  halve |= {
    "objective": {"kind": "moment_matching"},
    "sampler": {"kind": "ancestral", "noise": 0.0},
  }
  del halve["start_steps"]
  path, workdir = write_config(config), tmp_path / "run"
  assert refuse(1, "train", f"--config={path}", f"--workdir={workdir}") == (
    "stages.halve.num_steps is (), but its objective needs it; pass one"
  )
  assert not workdir.exists()


@pytest.fixture(scope="module")
def brief_pairs(pairs_config):
  """A config with one-step pairs and a student of two updates."""
  config = copy.deepcopy(pairs_config)
  for name in ("teacher", "student"):
    config["stages"][name]["optimizer"]["warmup"] = 2
  config["stages"]["teacher"]["num_updates"] = 2
  config["stages"]["pairs"]["num_steps"] = 1
  config["stages"]["student"]["num_updates"] = 2
  del config["stages"]["student"]["select"]
  return config


@pytest.fixture(scope="module")
def pairs_run(brief_pairs, write_config, run_cli, tmp_path_factory):
  """The workdir and the config file of a finished run that made pairs."""
  path = write_config(brief_pairs)
  workdir = tmp_path_factory.mktemp("runs") / "pairs"
  assert run_cli("train", f"--config={path}", f"--workdir={workdir}") == 0
  return workdir, path


def test_pairs_of_another_teacher_are_refused(
  refuse, pairs_run, brief_pairs, write_config, tmp_path
):
  theirs = pairs_run[0] / "pairs" / "pairs"
  config = copy.deepcopy(brief_pairs)
  config["stages"]["pairs"]["path"] = str(theirs)
  config["seed"] = 4
  before = {path: path.read_bytes() for path in theirs.iterdir()}
  line = refuse(
    1, "train", f"--config={write_config(config)}", f"--workdir={tmp_path}/new"
  )
  assert line.startswith(f"{theirs} holds pairs whose teacher is '")
  assert "pass that teacher or another directory" in line
  assert before == {path: path.read_bytes() for path in theirs.iterdir()}


def test_a_shard_that_is_cut_short_is_refused_and_made_again(
  refuse, pairs_run, run_cli, tmp_path
):
  finished, path = pairs_run
  workdir = tmp_path / "run"
  shutil.copytree(finished, workdir)
  # Now the student is not finished.
  shutil.rmtree(workdir / "student")
  shard = workdir / "pairs" / "pairs" / "00002.npz"
  whole = shard.read_bytes()
  shard.write_bytes(whole[:-30])
  arguments = ("train", f"--config={path}", f"--workdir={workdir}")
  assert refuse(1, *arguments) == (
    f"{shard} is cut short or damaged; remove it and it is made again"
  )
  shard.unlink()
  assert run_cli(*arguments) == 0
  # The student does two updates, which may not need this shard of pairs.
  if shard.exists():
    assert shard.read_bytes() == whole


def test_packed_data_gives_the_same_losses(
  config_file, finished_run, run_cli, tmp_path, capsys
):
  config = f"--config={config_file}"
  out = tmp_path / "data" / "packed.npz"
  assert run_cli("pack", config, f"--out={out}") == 0
  printed = capsys.readouterr()
  assert printed.out.startswith(f"{out}: 50 train images of 2x2x1 in 3 classes")
  first, second = printed.err.splitlines()
  assert first.startswith("data on 8 cpu: 50 images of 2x2x1 in 3 classes")
  assert second == "train: 50 of 50 images"
  # The stage of the teacher is enough to show that the data is the same.
  source, workdir = f"--config.data.source.path={out}", tmp_path / "run"
  only = "--config.run=('teacher',)"
  assert run_cli("train", config, source, only, f"--workdir={workdir}") == 0
  ours, theirs = (
    [
      json.loads(line)["teacher/loss"]
      for line in (place / "metrics.jsonl").read_text().splitlines()
      if "teacher/loss" in line
    ]
    for place in (workdir, finished_run)
  )
  assert ours == theirs != []


@pytest.mark.parametrize("out", ["packed.npy", "packed"])
def test_another_ending_than_npz_is_refused_for_packed_data(
  refuse, config_file, tmp_path, out
):
  line = refuse(1, "pack", f"--config={config_file}", f"--out={tmp_path / out}")
  assert line == f"out is '{tmp_path / out}'; pass a name that ends in .npz"
  assert not list(tmp_path.iterdir())
