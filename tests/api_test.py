"""Tests that a program or a notebook gets the results of a run by the API."""

import io
import json
import pathlib
import pickle
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pandas
import pytest
from ml_collections import ConfigDict
from PIL import Image

import diffdistill
from diffdistill import api
from diffdistill.api.paths import several
from diffdistill.judging import evaluate as judging
from diffdistill.tools import drawn, evaluate

README = pathlib.Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def run(finished_run):
  return diffdistill.open(finished_run)


@pytest.fixture(scope="module")
def exports(run, tmp_path_factory):
  """Exports the student as a program, and the teacher as weights."""
  folder = tmp_path_factory.mktemp("exports")
  run.export(None, folder / "student", kind="stablehlo")
  run.export("teacher", folder / "weights")
  return [diffdistill.open(folder / name) for name in ("student", "weights")]


@pytest.fixture(scope="module")
def judged(run, exports, tmp_path_factory):
  """Makes a copy of the run, and evaluates it with the exported models."""
  workdir = tmp_path_factory.mktemp("runs") / "judged"
  shutil.copytree(run.folder, workdir)
  copy = diffdistill.open(str(workdir))
  folders = [exported.folder for exported in exports]
  return copy, copy.evaluate([1, 2], exported=folders)


def size(picture):
  with Image.open(io.BytesIO(picture.png)) as image:
    assert image.format == "PNG"
    return image.size


def test_a_run_lists_its_finished_models(run):
  assert [(m.name, m.kind, m.num_steps) for m in run.models] == [
    ("classifier", "classifier", None),
    ("teacher", "teacher", None),
    ("halve/001", "student", 1),
  ]
  assert repr(run.models).splitlines()[0].split() == [
    "name",
    "kind",
    "num_steps",
  ]


@pytest.mark.parametrize(
  ("flags", "values"),
  [
    (
      ("--round=teacher", "--num_steps=1", "--seed=1", "--label=2"),
      {"model": "teacher", "num_steps": 1, "seed": 1, "label": 2},
    ),
    (("--interpolate=3",), {"interpolate": 3}),
  ],
)
def test_run_sample_makes_the_images_of_the_command(
  run, run_cli, tmp_path, flags, values
):
  out = tmp_path / "images.npz"
  common = ("sample", f"--workdir={run.folder}", f"--out={out}")
  assert run_cli(*common, "--num_images=2", *flags) == 0
  images = run.sample(num_images=2, **values)
  assert images.dtype == np.uint8
  np.testing.assert_array_equal(images, np.load(out)["arr_0"])


def test_an_exported_model_makes_the_images_of_its_run(run, exports):
  student, teacher = exports
  for exported, name, steps in (
    (student, "halve/001", None),
    (teacher, "teacher", 2),
  ):
    ours = run.sample(name, num_images=5, num_steps=steps, label=1)
    theirs = exported.sample(num_images=5, num_steps=steps, label=1)
    # The tolerance is one grey level, because XLA may round an exported program
    # in another way.
    assert np.abs(ours.astype(int) - theirs).max() <= 1
  assert [(m.name, m.kind, m.num_steps) for m in student.models] == [
    ("student", "student", 1)
  ]
  assert [m.kind for m in teacher.models] == ["teacher"]


def test_plain_sheets_show_the_images_alone(run, exports):
  one = run.sheet("halve/001", num_images=4, plain=True)
  assert size(one) == (2 * (48 + 2) + 2,) * 2
  rows = run.sheet(num_images=4, plain=True)
  assert size(rows) == (4 * (48 + 2) + 2, 2 * (48 + 2) + 2)
  ways = run.sheet("halve/001", num_images=2, interpolate=3, plain=True)
  assert size(ways) == (3 * 50 + 2, 2 * 50 + 2)
  assert size(exports[0].sheet(num_images=4, plain=True))[1] == 48 + 4


def labels_of(monkeypatch):
  """Records the labels of each sheet that is drawn."""
  labels = []

  def spy(function):
    def draw(images, texts, *rest):
      labels.append(texts)
      return function(images, texts, *rest)

    return draw

  for module, name in (
    (drawn, "labelled_sheet"),
    (drawn, "labelled_rows"),
    (judging, "labelled_rows"),
  ):
    monkeypatch.setattr(module, name, spy(getattr(module, name)))
  return labels


def test_sheets_say_what_they_show(run, exports, judged, monkeypatch):
  labels = labels_of(monkeypatch)
  run.sheet("halve/001", num_images=2, seed=3, label=2)
  assert labels[-1].title == "student halve/001, 1 step, seed 3"
  assert labels[-1].images == ("class 2", "class 2")
  run.sheet("teacher", num_images=1, num_steps=2, interpolate=3, label=1)
  assert labels[-1].title.startswith("teacher, 2 steps, seed 0, each row from")
  assert labels[-1].rows == ("class 1",)
  assert labels[-1].columns == ["0 %", "50 %", "100 %"]
  run.sheet(num_images=2, label=2)
  assert labels[-1].columns == ["class 2", "class 2"]
  exports[0].sheet("student", num_images=1, label=0)
  assert labels[-1].title == "student, 1 step, seed 0"
  _, evaluation = judged
  # The exported model is named "student" too, so the run's has its full name.
  assert list(evaluation.images) == [
    *("teacher, 2 steps", "teacher, 1 step"),
    *("halve/001, 1 step", "student, 1 step"),
    *("weights, 2 steps", "weights, 1 step"),
  ]
  assert size(evaluation.sheet())[1] > 6 * (48 + 2) + 2
  assert len(labels[-1].columns) == len(evaluation.images["teacher, 1 step"])
  assert re.fullmatch(r"class \d", labels[-1].columns[0])


def test_evaluate_keeps_its_rows_and_agrees_with_the_command(judged, capsys):
  run, evaluation = judged
  rows = [(row["model"], row["steps"]) for row in evaluation.rows]
  assert rows == [
    ("teacher", 2),
    ("teacher", 1),
    ("halve/001", 1),
    ("student", 1),
    ("weights", 2),
    ("weights", 1),
  ]
  own, theirs = (evaluation.rows[i]["FD-classifier"] for i in (2, 3))
  assert theirs == pytest.approx(own, rel=1e-4)
  capsys.readouterr()
  evaluate.evaluate(run.folder, None, (1, 2))
  printed = capsys.readouterr()
  assert printed.err.count("(judged before)") == 3
  # The command must print the same table as this evaluation.
  again = run.evaluate((1, 2))
  assert printed.out == f"{again!r}\n"
  html = ElementTree.fromstring(again._repr_html_().replace("<br>", "<br />"))
  assert [row[0].text for row in html.iter("tr")] == [
    "model",
    "teacher",
    "teacher",
    "halve/001",
  ]
  assert evaluation.warning in printed.out
  for column in ("halve/001", "paper", "training_passes", "speed_up"):
    assert column in printed.out
  # A report must show the largest evaluation.
  written = json.loads((run.folder / "evaluation.json").read_text())
  assert written["rows"] == evaluation.rows
  assert (run.folder / "evaluation.png").read_bytes() == evaluation.curve().png
  assert (run.folder / "samples" / "compared.png").exists()
  records = evaluation.records()
  samplers = [row["sampler"] for row in records]
  assert samplers == [*["ddim"] * 3, *[None] * 3]
  table = pandas.DataFrame(records)
  assert list(table["FD-classifier"]) == [
    row["FD-classifier"] for row in evaluation.rows
  ]
  assert set(table["run"]) == {run.folder.name}


def test_an_exported_model_is_judged_again_when_it_changes(
  judged, exports, capsys, tmp_path
):
  run, _ = judged
  folder = tmp_path / "student"
  shutil.copytree(exports[0].folder, folder)
  run.evaluate((1, 2), exported=[folder])
  assert capsys.readouterr().err.count("(judged before)") == 4
  other = tmp_path / "other" / "student"
  run.export("teacher", other, kind="stablehlo", num_steps=1)
  capsys.readouterr()
  run.evaluate((1, 2), exported=[other])
  assert capsys.readouterr().err.count("(judged before)") == 3


def test_an_evaluation_and_a_stage_have_pictures(judged):
  run, evaluation = judged
  data, metadata = run.curve()._repr_png_()
  assert metadata["width"] < size(run.curve())[0]
  assert data == run.curve().png
  assert size(evaluation.curve()) == size(run.curve())
  assert size(run.losses("halve"))[0] == size(run.curve())[0]


def test_cost_counts_images_and_passes_of_each_round(run):
  cost = run.cost()
  assert [row["round"] for row in cost] == [
    "classifier",
    "teacher",
    "halve/001",
    "all",
  ]
  # A round has two updates of eight images. A gradient counts as three passes.
  # For a student, its teacher makes two more passes.
  assert [row["images"] for row in cost] == [16, 16, 16, 48]
  assert [row["passes"] for row in cost] == [None, 48, 80, 128]
  assert "peak host MB" in repr(cost)


def test_train_returns_the_run(small_config, run, tmp_path, capsys):
  workdir = shutil.copytree(run.folder, tmp_path / "run")
  again = diffdistill.train(small_config, workdir)
  assert "finished already, so nothing is trained" in capsys.readouterr().err
  assert again.models == run.models
  with pytest.raises(ValueError, match="was made with another config: seed is"):
    diffdistill.train({**small_config, "seed": 9}, workdir)


def test_the_code_in_the_readme_works(
  judged, small_config, tmp_path, monkeypatch
):
  (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
  workdir = shutil.copytree(judged[0].folder, tmp_path / "digits")
  config = ConfigDict(small_config)
  monkeypatch.setattr(api, "recipe", {"digits:progressive": config}.get)
  names = {}
  exec(block.replace("runs/digits", str(workdir)), names)
  assert names["images"].shape == (16, 2, 2, 1)
  assert len(names["evaluation"].rows) == 3


def test_a_recipe_is_found_by_its_name():
  config = diffdistill.recipe("digits:progressive")
  file = pathlib.Path(diffdistill.__file__).parent / "configs" / "digits.py"
  assert diffdistill.recipe(file) == config
  assert config.run[-1] == "halve"
  with refused("^recipe is 'digits:progresive', no file and no recipe; did"):
    diffdistill.recipe("digits:progresive")


def refused(match):
  return pytest.raises(ValueError, match=match)


def test_a_folder_without_a_run_is_refused(tmp_path):
  for path in (tmp_path, tmp_path / "nowhere"):
    with refused("holds neither a run nor an exported model") as error:
      diffdistill.open(path)
    assert str(error.value).startswith(f"{path} ")
    assert "\n" not in str(error.value)
  (tmp_path / "config.json").write_text("{")
  with refused("config.json"):
    diffdistill.open(tmp_path)
  with refused("path is s3://bucket/run, but the only store"):
    diffdistill.open("s3://bucket/run")


def test_impossible_arguments_of_a_run_are_refused(run, judged, tmp_path):
  with refused("the model is 'halve/004', which is not finished"):
    run.sample("halve/004")
  with refused("num_images is 0; pass 1 or more"):
    run.sample(num_images=0)
  with refused("label is 11, but this model has 3 classes"):
    run.sample(label=11)
  with refused("stage is 'nope', which has no records of updates; pass one of"):
    run.losses("nope")
  with refused("has no evaluation yet; evaluate first"):
    run.curve()
  run.export("teacher", tmp_path / "teacher")
  with refused("teacher is the name of two models; rename the folder of the"):
    judged[0].evaluate((1,), exported=[tmp_path / "teacher"])


def test_a_run_that_was_used_can_be_pickled(run):
  assert run.models
  copy = pickle.loads(pickle.dumps(run))
  assert copy == run
  assert "_artist" in vars(run)
  assert "_artist" not in vars(copy)


def test_a_text_or_one_number_is_no_list():
  assert several("num_steps", [1, 2]) == several("num_steps", (1, 2)) == (1, 2)
  for value in ("12", 4, pathlib.Path("model")):
    with refused("num_steps is .*; pass a list of such values"):
      several("num_steps", value)


def test_an_empty_path_is_refused():
  for call in (diffdistill.open, lambda path: diffdistill.train({}, path)):
    with refused(" is empty; pass a path"):
      call("")


def test_an_exported_model_refuses_what_needs_its_run(exports):
  student, teacher = exports
  for act in (
    student.curve,
    student.cost,
    student.evaluate,
    student.steps,
    lambda: student.losses("halve"),
    lambda: student.export(None, "nowhere"),
  ):
    with refused("holds an exported model without its run, so it cannot be"):
      act()
  with refused("num_steps is 2, but student was made for 1; leave it out"):
    student.sample(num_steps=2)
  with refused("guidance is 1.0, but student has the guidance that it was"):
    student.sample(guidance=1.0)
  with refused("model is 'halve/001', but the folder holds student alone"):
    student.sample("halve/001")
  with refused("weights is a teacher, which was made for no number of steps"):
    teacher.sample()
