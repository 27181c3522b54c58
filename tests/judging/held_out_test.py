"""A classifier that cannot judge is refused before anything is trained."""

import copy
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from diffdistill.judging.before_training import check_judge
from diffdistill.judging.scorer import Scorer
from diffdistill.run import from_config
from diffdistill.tools import evaluate, report, train
from diffdistill.training import checkpoint


@pytest.fixture
def of_labels(judged_config, tmp_path):
  """Makes the judged config on images with the given labels of each split."""

  def make(*splits):
    fields = copy.deepcopy(judged_config)
    name = "{split}.npz" if len(splits) > 1 else "train.npz"
    fields["data"]["source"]["path"] = str(tmp_path / name)
    for split, labels in zip(("train", "test"), splits, strict=False):
      image = np.zeros((len(labels), 2, 2, 1), np.uint8)
      np.savez(tmp_path / f"{split}.npz", image=image, label=labels)
    return fields

  return make


@pytest.mark.parametrize("label", [0, 4])
def test_a_classifier_of_one_class_is_refused_before_training(
  of_labels, tmp_path, label
):
  fields = of_labels(np.full(60, label))
  with pytest.raises(ValueError, match="has 1 class with images, from which"):
    train.train(fields, epath.Path(tmp_path) / "run")
  assert not (tmp_path / "run").exists()


def test_too_few_images_to_trust_any_judge_are_refused_before_training(
  of_labels, tmp_path
):
  fields = of_labels(np.arange(60) % 3)
  with pytest.raises(ValueError, match="by is 'distance', but classifier can"):
    train.train(fields, epath.Path(tmp_path) / "run")
  assert not (tmp_path / "run").exists()
  fields["stages"]["halve"]["select"] = {"every": 0}
  said = []
  check_judge(from_config.build(fields), {"classifier", "halve"}, said.append)
  assert said == [
    "classifier: does not train on 6 of the 60 training images, which measure"
    " how right it is; there is no test split"
  ]


def test_a_class_of_one_image_is_trained_on_and_reported(of_labels):
  fields = of_labels(np.r_[np.arange(300) % 3, 3])
  said = []
  check_judge(from_config.build(fields), {"classifier"}, said.append)
  assert said[0].endswith("; classes of one image, which it trains on: 1")


def test_an_unreadable_test_split_is_refused_before_training(of_labels):
  fields = of_labels(np.arange(60) % 3, np.arange(30) % 3)
  check_judge(from_config.build(fields), {"halve"}, pytest.fail)
  path = epath.Path(fields["data"]["source"]["path"].format(split="test"))
  path.unlink()
  with pytest.raises(FileNotFoundError, match=r"test\.npz does not exist"):
    check_judge(from_config.build(fields), {"halve"}, pytest.fail)


def test_only_the_classifier_is_not_trained_on_its_held_out_images(
  judged_config,
):
  run = from_config.build(judged_config)
  _, held_out = run.judged_on
  assert len(held_out) == 24
  unseen = {image.tobytes() for image in held_out.take(np.arange(24))["image"]}

  def seen(stage):
    pipeline = run.batches(8, 0, stage)
    assert len(pipeline.source) == (216 if stage == "classifier" else 240)
    batches = [pipeline.batch(step)["image"] for step in range(30)]
    return {image.tobytes() for image in np.concatenate(batches)}

  assert not unseen & seen("classifier")
  assert unseen <= seen("teacher")
  assert unseen <= seen("")


def test_with_a_test_split_the_classifier_sees_all_training_images(of_labels):
  run = from_config.build(of_labels(np.arange(60) % 3, np.arange(30) % 3))
  assert run.batches(8, 0, "classifier").source is run.source
  assert len(run.judged_on[1]) == 30


@pytest.fixture(scope="module")
def poor(run, workdir, tmp_path_factory):
  """The workdir of a finished run whose classifier has learned nothing.

  A better classifier selected the students of the run.
  """
  poor = epath.Path(tmp_path_factory.mktemp("runs")) / "poor"
  leave_out = shutil.ignore_patterns("evaluated", "evaluation.*")
  shutil.copytree(workdir, poor, ignore=leave_out)
  params = run.product(workdir, "classifier")
  shutil.rmtree(poor / "classifier" / "final")
  nothing = jax.tree.map(jax.numpy.zeros_like, params)
  checkpoint.save_final(poor / "classifier", {"classifier": nothing})
  return poor


@pytest.mark.slow
def test_no_student_is_selected_by_a_judge_that_is_not_trusted(
  poor, config, tmp_path
):
  here = epath.Path(tmp_path) / "run"
  later = shutil.ignore_patterns("halve", "pairs", "student")
  shutil.copytree(poor, here, ignore=later)
  recorded = (here / "metrics.jsonl").read_text()
  with pytest.raises(ValueError, match="but its judge is NOT TRUSTED") as met:
    train.train(config, here)
  for words in (
    "stages.halve.select.by is 'distance'",
    "right on 33.3 % of 24 training images that classifier does not train on",
    "stages.halve.select.every=0",
  ):
    assert words in str(met.value)
  assert not (here / "halve").exists()
  assert (here / "metrics.jsonl").read_text() == recorded


def test_a_trained_classifier_is_said_to_be_a_judge_or_not(workdir, poor):
  for folder, words in (
    (workdir, "classifier as a judge is trusted: "),
    (poor, "classifier as a judge is NOT TRUSTED: "),
  ):
    run = from_config.reopen(folder)
    lines = []
    Scorer(run, folder, say=lines.append).ends(run.stages[0])
    Scorer(run, folder, say=lines.append).ends(run.stages[1])
    (line,) = lines
    assert line.startswith(words)
    remedy = "pass more --config.stages.classifier.num_updates in a new"
    assert (remedy in line) == (folder is poor)


def test_an_evaluation_warns_that_its_judge_is_not_trusted(poor, capsys):
  capsys.readouterr()
  evaluate.evaluate(poor, None, (1,))
  printed = capsys.readouterr()
  says = "FD-classifier does not measure these models: its judge is NOT TRUSTED"
  assert printed.out.startswith(f"{says}: the classifier is right on 33.3 % of")
  assert printed.err.splitlines()[-1].startswith(f"warning: {says}: ")
  written = json.loads((poor / "evaluation.json").read_text())
  assert written["judge_trusted"] is False
  assert written["classifier_accuracy"] == pytest.approx(1 / 3)
  assert written["judge"].startswith("NOT TRUSTED: ")
  for ending in (".html", ".json"):
    out = poor / f"report{ending}"
    report.report([poor], out)
    assert "NOT TRUSTED: the classifier is right on" in out.read_text()
