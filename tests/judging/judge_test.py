"""The models of a tiny run are judged, and rows hold their training cost."""

import copy
import dataclasses
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from etils import epath

from diffdistill.evaluation.features import Reference
from diffdistill.evaluation.frechet import Moments
from diffdistill.evaluation.metrics import distance
from diffdistill.judging import judge as judging
from diffdistill.judging.contestants import contestants, finished_models
from diffdistill.judging.judge import identity_of, judge_of
from diffdistill.judging.judged_rows import JudgedRows
from diffdistill.judging.scorer import Scorer
from diffdistill.judging.summaries import read_summary
from diffdistill.run import from_config
from diffdistill.tools import evaluate, train
from diffdistill.training import checkpoint
from diffdistill.training.preemption import PreemptedError, Preemption
from diffdistill.training.report import costs

BATCH, UPDATES = 8, 2


@pytest.fixture(scope="module")
def config(judged_config):
  return judged_config


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
  workdir = epath.Path(tmp_path_factory.mktemp("runs")) / "judged"
  train.train(config, workdir)
  return workdir


@pytest.fixture(scope="module")
def run(workdir):
  return from_config.reopen(workdir)


@pytest.fixture(scope="module")
def evaluated(workdir):
  """(Rows by model and steps, the rest of evaluation.json.)"""
  evaluate.evaluate(workdir, None, None)
  written = json.loads((workdir / "evaluation.json").read_text())
  rows = {(row["model"], row["steps"]): row for row in written.pop("rows")}
  return rows, written


def silent(_):
  pass


def test_the_teacher_is_judged_first_then_students_at_their_steps(run, workdir):
  judged = contestants(run, workdir, silent)
  assert [(c.name, c.num_steps, c.shown) for c in judged] == [
    ("teacher", (1, 2, 4), True),
    ("halve/002", (2,), True),
    ("halve/002 last", (2,), False),
    ("halve/001", (1,), True),
    ("halve/001 last", (1,), False),
    ("student/001", (1,), True),
    ("student/001 last", (1,), False),
  ]
  best, last = judged[1].load(), judged[2].load()
  assert best.keys() == last.keys()


def test_passes_add_up_along_the_chain_of_students(evaluated):
  rows, _ = evaluated
  # An update takes a gradient and two teacher passes; a pair takes four steps.
  halving = UPDATES * BATCH * (3 + 2)
  pairs = (32 + 16) * 4
  expected = {
    ("teacher", 4): 0,
    ("halve/002", 2): halving,
    ("halve/002 last", 2): halving,
    ("halve/001", 1): 2 * halving,
    ("halve/001 last", 1): 2 * halving,
    ("student/001", 1): pairs + UPDATES * BATCH * 3,
  }
  for name, passes in expected.items():
    assert rows[name]["training_passes"] == passes, name


def test_seconds_add_up_along_the_chain_of_students(evaluated, workdir):
  rows, _ = evaluated
  spent = {
    name: seconds for name, (_, seconds) in costs(workdir, silent).items()
  }
  for name, rounds in (
    ("halve/002", ["halve/002"]),
    ("halve/001", ["halve/002", "halve/001"]),
    ("student/001", ["pairs", "student/001"]),
  ):
    row = rows[name, 2 if name == "halve/002" else 1]
    assert row["training_seconds"] == round(sum(spent[r] for r in rounds))
    assert min(spent[made] for made in rounds) > 0
  assert rows["teacher", 4]["training_seconds"] == 0


def test_a_row_has_its_paper_and_its_speed_up(evaluated):
  rows, _ = evaluated
  papers = {model: row["paper"] for (model, _), row in rows.items()}
  assert papers == {
    "teacher": "denoising",
    "halve/002": "progressive",
    "halve/002 last": "progressive",
    "halve/001": "progressive",
    "halve/001 last": "progressive",
    "student/001": "denoising_student",
    "student/001 last": "denoising_student",
  }
  slowest = rows["teacher", 4]
  assert slowest["speed_up"] == 1
  for row in rows.values():
    assert row["timed_batches"] == 3
    assert row["timed_batch_size"] == BATCH
    if row is not slowest:
      least, most = row["speed_up_least"], row["speed_up_most"]
      assert least <= row["speed_up"] <= most
      # Timings of a small network vary much on a busy machine, and each number
      # has only the digits that its spread allows.
      low, high = (
        row[f"images_per_second_{own}"] / slowest[f"images_per_second_{other}"]
        for own, other in (("least", "most"), ("most", "least"))
      )
      assert 0.9 * least <= high
      assert low <= 1.1 * most


def test_an_evaluation_states_the_facts_about_its_judge(evaluated, run):
  _, summary = evaluated
  assert summary["metric"] == "FD-classifier"
  assert summary["reference"] == "240 training images"
  # An .npz has no test split.
  unseen = "24 training images that classifier does not train on"
  assert summary["classifier_held_out"] == unseen
  assert summary["classifier_accuracy"] > 0.8
  assert summary["judge_trusted"]
  assert f"of {unseen} (with 99 % confidence on " in summary["judge"]
  assert summary["FD-classifier of two samples of 120 real images"] > 0
  assert summary["num_images"] == 24


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


def untimed(workdir):
  """The content of evaluation.json without measured times."""
  written = read_summary(workdir / "evaluation.json")
  for row in written["rows"]:
    for name in [n for n in row if n.startswith(("images_per", "speed_up"))]:
      del row[name]
  return json.dumps(written)


@pytest.fixture
def copied(workdir, tmp_path):
  """A copy of the run without evaluations."""
  copy = tmp_path / "copy"
  leave_out = shutil.ignore_patterns("evaluated", "evaluation.*")
  shutil.copytree(workdir, copy, ignore=leave_out)
  return epath.Path(copy)


def made_by(monkeypatch):
  """A list that gets the (model, steps) of each new row."""
  made = []
  keep = JudgedRows.keep

  def noted(self, row):
    made.append((row.made_with["model"], row.made_with["steps"]))
    keep(self, row)

  monkeypatch.setattr(JudgedRows, "keep", noted)
  return made


def test_an_evaluation_that_a_signal_stopped_can_go_on(
  evaluated, workdir, copied, monkeypatch
):
  judge_of(from_config.reopen(copied), copied)
  batches = iter(range(100))

  class Told(Preemption):
    def agreed(self, mesh, *, lag=0):
      # One image gives the number of features. Then each row has three batches,
      # and a fourth that is only timed.
      return next(batches) == 13

  made = made_by(monkeypatch)
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


def test_a_signal_stops_the_pass_over_the_data(copied, monkeypatch, capsys):
  def once(source, batch_size):
    os.kill(os.getpid(), signal.SIGTERM)
    yield from pipeline_once(source, batch_size)

  pipeline_once = judging.once
  monkeypatch.setattr(judging, "once", once)
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

  pipeline_once = judging.once
  monkeypatch.setattr(judging, "once", once)
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


def test_a_round_that_was_trained_again_is_judged_again(
  evaluated, run, workdir, copied, monkeypatch
):
  shutil.copytree(workdir / "evaluated", copied / "evaluated")
  made = made_by(monkeypatch)
  evaluate.evaluate(copied, None, None)
  assert made == []
  name = "halve/001"
  params = run.product(workdir, name)
  last = run.product(workdir, name, last=True)
  shutil.rmtree(copied / name / "final")
  # One bit of one weight changes, in the middle of the round.
  leaves, tree = jax.tree.flatten(params)
  leaves[0] = jax.numpy.nextafter(leaves[0], jax.numpy.float32(9))
  moved = jax.tree.unflatten(tree, leaves)
  products = {"student": moved, "last_student": last}
  checkpoint.save_final(copied / name, products)
  evaluate.evaluate(copied, None, None)
  assert made == [(name, 1)]


def test_a_round_without_its_weights_keeps_its_judged_rows(
  evaluated, workdir, copied, monkeypatch, capsys
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
  made = made_by(monkeypatch)
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
  # All rows need the teacher's images.
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


def test_an_unfinished_round_is_left_out(config, workdir, tmp_path):
  """The run was stopped in the middle of a stage."""
  (tmp_path / "config.json").write_bytes((workdir / "config.json").read_bytes())
  part, said = epath.Path(tmp_path), []
  run = from_config.reopen(part)
  with pytest.raises(ValueError, match="has no finished model yet; train"):
    finished_models(run, part, silent)
  with pytest.raises(ValueError, match="has no final result; train until"):
    judge_of(run, part)
  for name in ("teacher", "halve"):
    (tmp_path / name).symlink_to(workdir / name)
  assert list(finished_models(run, part, said.append)) == [
    "teacher",
    "halve/002",
    "halve/001",
  ]
  assert said == ["student/001 is not finished; it is left out"]


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
  monkeypatch.setattr(judging, "load_inception", lambda path: params)


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
  monkeypatch.setattr(judging, "FEATURES", 30)
  judged = copy.deepcopy(config)
  evaluation = {"num_images": 40, "batch_size": 8, "inception": "weights.pth"}
  judged["evaluation"] = evaluation
  with pytest.raises(
    ValueError, match=r"stages\.halve\.select\.num_images is 24"
  ):
    judging.check_inception(from_config.build(judged))
  judged["stages"]["halve"]["select"]["num_images"] = 31
  judged["stages"]["student"]["select"]["num_images"] = 31
  judging.check_inception(from_config.build(judged))
  judged["evaluation"] = {**evaluation, "num_images": 30}
  with pytest.raises(ValueError, match=r"evaluation\.num_images is 30"):
    judging.check_inception(from_config.build(judged))
  monkeypatch.setattr(judging, "FEATURES", 250)
  judged["evaluation"] = {**evaluation, "num_images": 260}
  with pytest.raises(ValueError, match="number of training images is 240"):
    judging.check_inception(from_config.build(judged))
