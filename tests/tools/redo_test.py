"""Tests that a round can be trained again, and that the old one is kept."""

import copy
import json
import shutil

import pytest
from etils import epath

import diffdistill
from diffdistill.run import from_config
from diffdistill.run.redone import entries
from diffdistill.tools import redo as redoing
from diffdistill.tools import train as training
from diffdistill.training.records import read_records

pytestmark = pytest.mark.slow
ROUNDS = ("halve/002", "halve/001")


@pytest.fixture(scope="module")
def config(judged_config):
  """A judge, a teacher of two updates, and halvings to 2 and 1 steps."""
  config = copy.deepcopy(judged_config)
  config["run"] = ("classifier", "teacher", "halve")
  del config["stages"]["halve"]["select"]
  config["cadence"] = {"log": 1, "checkpoint": 1}
  return config


@pytest.fixture(scope="module")
def changed(config):
  """The same config, with another learning rate of the students."""
  config = copy.deepcopy(config)
  config["stages"]["halve"]["optimizer"]["learning_rate"] = 3e-2
  return config


@pytest.fixture(scope="module")
def before(config, tmp_path_factory):
  """A finished run, which tests copy."""
  workdir = epath.Path(tmp_path_factory.mktemp("redo")) / "run"
  training.train(config, workdir)
  return workdir


@pytest.fixture
def workdir(before, tmp_path):
  return epath.Path(shutil.copytree(before, tmp_path / "run"))


def weights(workdir, name):
  """The digests of the weights of a finished round."""
  return json.loads((workdir / name / "final.json").read_text())["products"]


def test_a_redo_with_the_same_settings_makes_the_same_weights(
  workdir, before, config, run_cli, write_config, capsys
):
  flags = (f"--config={write_config(config)}", f"--workdir={workdir}")
  assert run_cli("train", *flags, "--redo=halve/002") == 0
  said = capsys.readouterr().err
  assert "halve/002 is trained again; the old one is halve-old1/002" in said
  assert "finished already: classifier, teacher\n" in said
  for name in ROUNDS:
    assert weights(workdir, name) == weights(before, name)
    old = name.replace("halve", "halve-old1")
    assert weights(workdir, old) == weights(before, name)
  rounds = {record["round"] for _, record in read_records(workdir).good}
  assert rounds >= {*ROUNDS, "halve-old1/002", "halve-old1/001"}
  # The same command again does not train a third time.
  assert run_cli("train", *flags, "--redo=halve/002") == 0
  assert "finished already, so nothing is trained" in capsys.readouterr().err
  assert not (workdir / "halve-old2").exists()


@pytest.fixture(scope="module")
def redone(before, changed, tmp_path_factory):
  """A run whose last student was trained again with another learning rate."""
  workdir = epath.Path(tmp_path_factory.mktemp("redone")) / "run"
  shutil.copytree(before, workdir)
  training.train(changed, workdir, redo="halve/002")
  return workdir


def test_later_rounds_begin_from_the_new_round(redone, before, changed):
  run = from_config.reopen(redone)
  assert run.rounds["halve/001"][1].frozen["teacher"] == "halve/002"
  old = run.rounds["halve-old1/001"][1]
  assert old.frozen["teacher"] == "halve-old1/002"
  assert list(run.lineage("halve-old1/001", students=True)) == [
    "halve-old1/002",
    "halve-old1/001",
  ]
  for name in ROUNDS:
    assert weights(redone, name) != weights(before, name)
    kept = name.replace("halve", "halve-old1")
    assert weights(redone, kept) == weights(before, name)
  stages = run.config["stages"]
  assert stages["halve"]["optimizer"]["learning_rate"] == 3e-2
  assert stages["halve-old1"]["optimizer"]["learning_rate"] == 1e-2


def test_only_later_rounds_are_trained_again(before, changed, tmp_path):
  workdir = epath.Path(shutil.copytree(before, tmp_path / "run"))
  training.train(changed, workdir, redo="halve/001")
  assert weights(workdir, "halve/002") == weights(before, "halve/002")
  assert weights(workdir, "halve/001") != weights(before, "halve/001")
  assert not (workdir / "halve-old1" / "002").exists()
  # A second redo has the next number, and keeps the first one.
  diffdistill.train(changed, workdir, redo="halve/002")
  run = from_config.reopen(workdir)
  assert [name for name in run.rounds if "old" in name] == [
    "halve-old1/001",
    "halve-old2/002",
    "halve-old2/001",
  ]
  assert run.rounds["halve-old1/001"][1].frozen["teacher"] == "halve-old2/002"


def test_the_old_round_is_sampled_evaluated_exported_and_reported(
  redone, run_cli, tmp_path, capsys
):
  flag, old = f"--workdir={redone}", "--round=halve-old1/002"
  sheet, folder = tmp_path / "old.png", tmp_path / "exported"
  sample = ("sample", flag, old, "--num_images=4", f"--out={sheet}")
  assert run_cli(*sample) == 0
  assert run_cli("export", flag, old, f"--out={folder}") == 0
  assert '"learning_rate": 0.01' in (folder / "README.md").read_text()
  assert run_cli("evaluate", flag) == 0
  rows = json.loads((redone / "evaluation.json").read_text())["rows"]
  judged = {row["model"] for row in rows}
  assert judged == {"teacher", *ROUNDS, "halve-old1/002", "halve-old1/001"}
  report = tmp_path / "report.json"
  assert run_cli("report", flag, f"--out={report}") == 0
  assert "halve-old1/002" in report.read_text()
  page = tmp_path / "report.html"
  assert run_cli("report", flag, f"--out={page}") == 0
  assert "halve-old1" in page.read_text()
  capsys.readouterr()
  inside = redone / "halve-old1" / "x.png"
  assert run_cli("sample", flag, f"--out={inside}") == 1
  assert "keeps its own files" in capsys.readouterr().err


class Killed(BaseException):
  """Stands for the end of the process."""


@pytest.mark.parametrize("moment", ["first folder", "config", "first update"])
def test_a_redo_that_is_killed_goes_on_as_a_redo(
  workdir, redone, config, changed, moment, monkeypatch
):
  def die(*_, **__):
    raise Killed

  moves = []

  def die_at_second(old, new):
    moves.append(old)
    if len(moves) > 1:
      raise Killed
    move(old, new)

  move = redoing.move
  places = {
    "first folder": (redoing, "move", die_at_second),
    "config": (training, "claim", die),
    "first update": (training.Trainer, "run", die),
  }
  with monkeypatch.context() as patch:
    patch.setattr(*places[moment])
    with pytest.raises(Killed):
      training.train(changed, workdir, redo="halve/002")
  if moment == "first folder":
    # No other command trains the rounds that have no names yet.
    with pytest.raises(ValueError, match="pass --redo=halve/002 with its"):
      training.train(config, workdir)
    with pytest.raises(ValueError, match=r"the redo of halve/002 in .* was"):
      training.train(config, workdir, redo="halve/001")
  training.train(changed, workdir, redo="halve/002")
  assert len(entries(workdir)) == 1
  for name in (*ROUNDS, "halve-old1/002", "halve-old1/001"):
    assert weights(workdir, name) == weights(redone, name)
  steps = [
    (record["round"], record["step"])
    for _, record in read_records(workdir).good
  ]
  assert len(steps) == len(set(steps))
  assert ("halve-old1/002", 2) in steps


def test_a_redo_that_cannot_be_is_refused_in_one_line(
  workdir, config, changed, tmp_path
):
  def refused(match, fields, redo, place=workdir):
    with pytest.raises(ValueError, match=match):
      training.train(fields, place, redo=redo)

  refused("redo is halve/004, which is no round of this", config, "halve/004")
  refused("holds no run", config, "teacher", epath.Path(tmp_path) / "new")
  other = copy.deepcopy(changed)
  other["stages"]["teacher"]["num_updates"] = 4
  refused("stages.teacher.num_updates is 2 there", other, "halve/002")
  other = copy.deepcopy(changed)
  other["stages"]["halve"]["start_steps"] = 2
  refused("changes the rounds of halve before", other, "halve/001")
  shutil.rmtree(workdir / "halve" / "001")
  refused("redo is halve/001, which has not begun", changed, "halve/001")
  assert entries(workdir) == []
  assert not (workdir / "halve-old1").exists()
