"""Tests of an evaluation that follows a training."""

import copy
import json
import os
import signal

import pytest
from etils import epath

from diffdistill.system.files import write_json
from diffdistill.tools import evaluate, follow, train
from diffdistill.training.preemption import PreemptedError


@pytest.fixture(scope="module")
def config(judged_config):
  """A judge, a teacher and halvings to 2 steps and 1, with few updates."""
  config = copy.deepcopy(judged_config)
  config["run"] = ("classifier", "teacher", "halve")
  del config["stages"]["halve"]["select"]
  return config


@pytest.fixture
def workdir(tmp_path):
  return epath.Path(tmp_path) / "run"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(follow, "SECONDS_TO_NOTICE", 0.0)
  monkeypatch.setattr(follow, "SECONDS_ON_DISK", 0.0)


@pytest.mark.slow
def test_each_model_is_judged_when_it_is_finished(
  workdir, config, monkeypatch, capsys
):
  train.train(config, workdir)
  # Take the results of all rounds away, and give them back one after the other.
  names = ("classifier", "teacher", "halve/002", "halve/001")
  away = {name: workdir / name / "final.json" for name in names}
  for path in away.values():
    path.rename(path.with_name("later"))
  judged = []

  def next_round(*_):
    name = next((n for n, path in away.items() if not path.exists()), None)
    if name is not None:
      path = away[name]
      path.with_name("later").rename(path)

  judge = evaluate.judge

  def noted(*args, **settings):
    evaluation = judge(*args, **settings)
    judged.append([row["model"] for row in evaluation.rows])
    return evaluation

  monkeypatch.setattr(follow, "_wait", next_round)
  monkeypatch.setattr(evaluate, "judge", noted)
  evaluate.evaluate(workdir, None, None, follow=True)
  teacher = ["teacher"] * 3
  assert judged == [
    teacher,
    [*teacher, "halve/002"],
    [*teacher, "halve/002", "halve/001"],
  ]
  said = capsys.readouterr()
  assert "halve/001" in said.out
  assert [x for x in said.err.splitlines() if x.startswith("waits")] == [
    f"waits until {name} is finished" for name in names
  ]
  # Each row was made once.
  rows = [x for x in said.err.splitlines() if "steps  FD-classifier" in x]
  assert sum("judged before" not in row for row in rows) == 5
  written = json.loads((workdir / "evaluation.json").read_text())
  assert len(written["rows"]) == 5


def test_a_new_config_and_new_weights_are_seen(finished_run, own_run):
  """A training that was started again, or a redo, is followed too."""
  workdir, looks = epath.Path(own_run), []

  def judge():
    looks.append((workdir / "halve" / "001" / "final.json").read_bytes())
    if len(looks) == 1:
      path = workdir / "halve" / "001" / "final.json"
      path.write_bytes(path.read_bytes() + b" ")
    return len(looks)

  assert follow.follow(workdir, judge) == 2


def test_new_checkpoints_of_a_student_are_seen(own_run):
  workdir, looks = epath.Path(own_run), 0
  round_dir = workdir / "halve" / "001"
  (round_dir / "final.json").rename(round_dir / "later")
  (round_dir / "checkpoints" / "1").mkdir(parents=True)

  def judge():
    nonlocal looks
    looks += 1
    if looks == 1:
      (round_dir / "checkpoints" / "2").mkdir()
    elif looks == 2:
      # The checkpoint is removed while it is judged.
      (round_dir / "later").rename(round_dir / "final.json")
      raise ValueError("the checkpoint is not there")
    return looks

  assert follow.follow(workdir, judge) == 3


def test_a_refusal_of_the_judge_ends_the_command(own_run):
  def judge():
    raise ValueError("num_images is 3; pass more")

  with pytest.raises(ValueError, match="num_images is 3; pass more"):
    follow.follow(epath.Path(own_run), judge)


def test_a_run_that_trains_no_judge_is_refused(own_run, tiny_config):
  path = epath.Path(own_run) / "config.json"
  config = json.loads(path.read_text())
  del config["digest"]
  config["run"] = ["teacher", "halve"]
  write_json(path, config)
  with pytest.raises(ValueError, match="trains no classifier that could judge"):
    follow.follow(epath.Path(own_run), lambda: None)


def test_a_signal_ends_the_wait(own_run):
  workdir = epath.Path(own_run)
  (workdir / "halve" / "001" / "final.json").unlink()

  def judge():
    os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(PreemptedError, match="while halve/001 is not") as left:
    follow.follow(workdir, judge)
  assert left.value.status == 75
