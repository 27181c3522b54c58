"""The judge of a run: its network, its statistics, and its distances."""

import copy
import dataclasses
import json
import os
import signal

import numpy as np
import pytest

from diffdistill.evaluation.features import Reference
from diffdistill.evaluation.frechet import Moments
from diffdistill.evaluation.metrics import distance
from diffdistill.judging import before_training
from diffdistill.judging import judge as judging
from diffdistill.judging.judge import identity_of, judge_of
from diffdistill.judging.scorer import Scorer
from diffdistill.judging.summaries import read_summary
from diffdistill.run import from_config
from diffdistill.tools import evaluate
from diffdistill.training.preemption import PreemptedError


def test_students_are_selected_by_the_distance_they_are_judged_by(
  evaluated, run, workdir
):
  rows, _ = evaluated
  score = Scorer(run, workdir)
  stage, round_ = run.rounds["halve/002"]
  scores = {}
  for last, name in ((False, "halve/002"), (True, "halve/002 last")):
    product = run.product(workdir, "halve/002", last=last)
    judge = judge_of(run, workdir)
    images = run.generator(stage.objective.sampler, 24).batches(
      product, run.seed ^ round_.code, 24, 2
    )
    measured = distance(images, judge.features, judge.reference)
    scores[name] = score(stage, round_, product, 24)
    assert scores[name] == pytest.approx(measured)
    # The judge is the same, but the noise is not that of the evaluation.
    assert measured != rows[name, 2]["FD-classifier"]
  recorded = [
    record["distance"]
    for record in map(
      json.loads, (workdir / "metrics.jsonl").read_text().splitlines()
    )
    if record["round"] == "halve/002" and "distance" in record
  ]
  assert len(recorded) == 2
  assert scores["halve/002"] == pytest.approx(min(recorded))
  assert scores["halve/002 last"] == pytest.approx(recorded[-1])


def test_a_signal_stops_the_pass_over_the_data(copied, monkeypatch, capsys):
  def once(source, batch_size):
    os.kill(os.getpid(), signal.SIGTERM)
    yield from pipeline_once(source, batch_size)

  pipeline_once = judging.images_once
  monkeypatch.setattr(judging, "images_once", once)
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(PreemptedError) as left:
    evaluate.evaluate(copied, None, None)
  assert left.value.status == 75
  assert signal.getsignal(signal.SIGTERM) is before
  assert not (copied / "evaluated").exists()


def test_the_data_is_read_only_once(copied, monkeypatch):
  looked = []

  def once(source, batch_size):
    looked.append(source)
    return pipeline_once(source, batch_size)

  pipeline_once = judging.images_once
  monkeypatch.setattr(judging, "images_once", once)
  run = from_config.reopen(copied)
  first, second = judge_of(run, copied), judge_of(run, copied)
  assert len(looked) == 1
  np.testing.assert_array_equal(
    first.reference.moments.cov, second.reference.moments.cov
  )


def test_other_data_gives_a_new_reference(copied, tmp_path):
  """This holds even if most images are the same."""
  run = from_config.reopen(copied)
  path, source = tmp_path / "other.npz", run.source.source
  with np.load(source.path) as arrays:
    image, label = arrays["image"].copy(), arrays["label"]
  image[1, 0, 0] ^= 1
  np.savez(path, image=image, label=label)
  other = dataclasses.replace(source, path=str(path))
  names = [
    identity_of(dataclasses.replace(run, source=source), copied)
    for source in (run.source, source, other)
  ]
  assert names[0] == names[1] != names[2]


def test_the_judge_computes_in_float32_after_any_training(config, copied):
  half = copy.deepcopy(config)
  half["classifier"]["dtype"] = "bfloat16"
  images = np.random.default_rng(0).uniform(-1, 1, (8, 2, 2, 1))
  pooled = [
    judge_of(from_config.build(each), copied)
    .features(images.astype(np.float32))
    .pooled
    for each in (config, half)
  ]
  np.testing.assert_array_equal(*pooled)


def test_a_run_without_a_classifier_has_no_judge(config, workdir):
  fields = copy.deepcopy(config)
  fields["run"] = ("teacher", "pairs", "student")
  run = from_config.build(fields)
  with pytest.raises(ValueError, match="; add one at the end of config"):
    judge_of(run, workdir)


@pytest.fixture
def detector(monkeypatch, run, workdir):
  """Puts the run's small classifier in the place of Inception."""
  monkeypatch.setattr(judging, "inception", lambda shape: run.classifier)
  monkeypatch.setattr(judging, "FEATURES", run.classifier.module.channels)
  params = run.product(workdir, "classifier")
  for module in (judging, before_training):
    monkeypatch.setattr(module, "load_inception", lambda path: params)


def judged_by(workdir, **settings):
  """Makes an evaluation and removes its files, for the next tests."""
  evaluate.evaluate(workdir, None, (1,), inception="weights.pth", **settings)
  (workdir / "evaluation.json").unlink()
  for path in (workdir / "evaluated").glob("evaluation_*.json"):
    result = read_summary(path)
    if result["metric"] == "FID":
      path.unlink()
      return result
  raise AssertionError("no evaluation was kept")


def test_distances_on_inception_are_named_fid_and_kid(workdir, detector):
  result = judged_by(workdir)
  assert result["metric"] == "FID"
  assert judging.SHA256 in result["detector"]
  assert result["resizer"] == judging.RESIZER
  assert result["reference"] == "240 training images"
  assert result["rounding"] == "to the nearest byte"
  assert all(isinstance(row["FID"], float) for row in result["rows"])
  assert all(isinstance(row["KID"], float) for row in result["rows"])
  # The kept statistics can be the reference of another evaluation.
  kept = str(workdir / "evaluated" / "inception_reference.npz")
  again = judged_by(workdir, reference=kept)
  assert again["reference"] == kept
  for row, other in zip(result["rows"], again["rows"], strict=True):
    assert row["FID"] == pytest.approx(other["FID"], rel=1e-6)


def test_a_reference_of_moments_alone_leaves_other_columns_empty(
  workdir, detector, tmp_path
):
  dim = judging.FEATURES
  np.savez(tmp_path / "s.npz", mu=np.zeros(dim), sigma=np.eye(dim))
  result = judged_by(workdir, reference=str(tmp_path / "s.npz"))
  for row in result["rows"]:
    assert row["FID"] > 0
    assert row["precision"] is row["recall"] is row["KID"] is None


def test_too_few_images_for_a_covariance_are_refused():
  judge = judge_of_fid(24, num_images=30)
  with pytest.raises(ValueError, match="num_images is 24, but a covariance"):
    judge.check(24)
  judge.check(25)
  with pytest.raises(ValueError, match="the reference has 24 images"):
    judge_of_fid(24, num_images=24).check(50_000)


def judge_of_fid(dim, num_images):
  moments = Moments.empty(dim).update(np.eye(num_images, dim))
  return judging.Judge(
    identity="",
    metric=judging.FID,
    features=lambda images: None,
    reference=Reference(moments=moments, pooled=None),
    said={},
  )


def test_a_run_without_a_classifier_may_select_by_fid(config):
  without = copy.deepcopy(config)
  without["run"] = ("teacher", "halve")
  with pytest.raises(ValueError, match=r"pass evaluation\.inception"):
    from_config.build(without)
  without["evaluation"]["inception"] = "weights.pth"
  assert from_config.build(without).evaluation.inception == "weights.pth"


def test_settings_without_a_possible_fid_are_refused_before_training(
  config, detector, monkeypatch
):
  monkeypatch.setattr(before_training, "FEATURES", 30)
  judged = copy.deepcopy(config)
  evaluation = {"num_images": 40, "batch_size": 8, "inception": "weights.pth"}
  judged["evaluation"] = evaluation
  with pytest.raises(
    ValueError, match=r"stages\.halve\.select\.num_images is 24"
  ):
    before_training.check_inception(from_config.build(judged))
  judged["stages"]["halve"]["select"]["num_images"] = 31
  judged["stages"]["student"]["select"]["num_images"] = 31
  before_training.check_inception(from_config.build(judged))
  judged["evaluation"] = {**evaluation, "num_images": 30}
  with pytest.raises(ValueError, match=r"evaluation\.num_images is 30"):
    before_training.check_inception(from_config.build(judged))
  monkeypatch.setattr(before_training, "FEATURES", 250)
  judged["evaluation"] = {**evaluation, "num_images": 260}
  with pytest.raises(ValueError, match="number of training images is 240"):
    before_training.check_inception(from_config.build(judged))
