"""An evaluation keeps its rows, and makes only missing ones again."""

import json
import shutil

import jax
import pytest

from diffdistill.judging.contestants import contestants
from diffdistill.judging.judge import judge_of
from diffdistill.judging.summaries import read_summary
from diffdistill.run import from_config
from diffdistill.tools import evaluate
from diffdistill.training import checkpoint
from diffdistill.training.preemption import PreemptedError, Preemption


def test_an_evaluation_states_the_facts_about_its_judge(evaluated, run):
  _, summary = evaluated
  assert summary["metric"] == "FD-classifier"
  assert summary["reference"] == "240 training images"
  # An .npz has no test split, so 24 of the training images are set apart.
  unseen = "24 training images that classifier does not train on"
  assert summary["classifier_held_out"] == unseen
  assert summary["classifier_accuracy"] > 0.8
  assert summary["judge_trusted"]
  assert f"of {unseen} (with 99 % confidence on " in summary["judge"]
  assert summary["FD-classifier of two samples of 120 real images"] > 0
  assert summary["num_images"] == 24


def untimed(workdir):
  """The content of evaluation.json without measured times."""
  written = read_summary(workdir / "evaluation.json")
  for row in written["rows"]:
    for name in [n for n in row if n.startswith(("images_per", "speed_up"))]:
      del row[name]
  return json.dumps(written)


def test_an_evaluation_that_a_signal_stopped_can_go_on(
  evaluated, workdir, copied, made, monkeypatch
):
  judge_of(from_config.reopen(copied), copied)
  batches = iter(range(100))

  class Told(Preemption):
    def agreed(self, mesh, *, lag=0):
      # Call 0 is for the one image that gives the number of features. Each row
      # then makes four calls, so call 13 is in the fourth row.
      return next(batches) == 13

  with monkeypatch.context() as patch:
    patch.setattr(evaluate, "Preemption", Told)
    with pytest.raises(PreemptedError, match="the rows that are done are kept"):
      evaluate.evaluate(copied, None, None)
  assert made == list(evaluated[0])[:3]
  assert not (copied / "evaluation.json").exists()
  evaluate.evaluate(copied, None, None)
  assert made == list(evaluated[0])
  evaluate.evaluate(workdir, None, None)
  assert untimed(copied) == untimed(workdir)


def test_a_round_that_was_trained_again_is_judged_again(
  evaluated, run, workdir, copied, made
):
  shutil.copytree(workdir / "evaluated", copied / "evaluated")
  evaluate.evaluate(copied, None, None)
  assert made == []
  name = "halve/001"
  params = run.product(workdir, name)
  last = run.product(workdir, name, last=True)
  shutil.rmtree(copied / name / "final")
  # Change the weights of one model as little as possible.
  leaves, tree = jax.tree.flatten(params)
  leaves[0] = jax.numpy.nextafter(leaves[0], jax.numpy.float32(9))
  moved = jax.tree.unflatten(tree, leaves)
  products = {"student": moved, "last_student": last}
  checkpoint.save_final(copied / name, products)
  evaluate.evaluate(copied, None, None)
  assert made == [(name, 1)]


def test_a_round_without_its_weights_keeps_its_judged_rows(
  evaluated, workdir, copied, made, capsys
):
  shutil.copytree(workdir / "evaluated", copied / "evaluated")
  for name in ("teacher", "halve/002", "halve/001"):
    shutil.rmtree(copied / name / "final")
    names = {"student", "last_student"} if "/" in name else {"teacher"}
    checkpoint.mark_final(copied / name, "left behind", names)
  run, said = from_config.reopen(copied), []
  judged = contestants(run, copied, said.append)
  assert [c.name for c in judged if not c.here] == [
    "teacher",
    "halve/002",
    "halve/002 last",
    "halve/001",
    "halve/001 last",
  ]
  assert said == []
  evaluate.evaluate(copied, None, None)
  assert made == []
  evaluate.evaluate(workdir, None, None)
  assert untimed(copied) == untimed(workdir)
  # A model that was not judged is left out and reported.
  shutil.rmtree(copied / "evaluated" / "halve" / "001")
  capsys.readouterr()
  evaluate.evaluate(copied, None, None)
  rows = json.loads((copied / "evaluation.json").read_text())["rows"]
  assert {"halve/001", "halve/001 last"} - {row["model"] for row in rows} == {
    "halve/001"
  }
  told = capsys.readouterr().err.splitlines()
  assert [line for line in told if "is left out" in line] == [
    "halve/001                       1 steps  is left out: its weights were"
    " left behind"
  ]
  # A new evaluation of 25 images needs the teacher, whose weights are gone.
  with pytest.raises(ValueError, match="teacher has not been judged at 4 step"):
    evaluate.evaluate(copied, 25, None)


@pytest.mark.parametrize("command", ["sample", "export"])
def test_a_round_without_weights_makes_no_images(
  copied, command, run_cli, capsys
):
  name = "halve/001"
  shutil.rmtree(copied / name / "final")
  checkpoint.mark_final(copied / name, "the weights are elsewhere")
  out = copied.parent / "out"
  out = out if command == "export" else out.with_suffix(".png")
  capsys.readouterr()
  arguments = (f"--workdir={copied}", f"--round={name}", f"--out={out}")
  assert run_cli(command, *arguments) == 1
  assert capsys.readouterr().err == (
    f"diffdistill: {copied / name} is done, but its weights were left behind"
    f" where it was trained; bring {copied / name}/final and final.json from"
    f" there, or remove {copied / name} to train it again\n"
  )
  assert not out.exists()
