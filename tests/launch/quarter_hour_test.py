"""The quarter hour of Fashion-MNIST, for every paper, shortened to seconds."""

import json

import pytest
from etils import epath

from diffdistill.configs import fashion_mnist
from diffdistill.configs.recipes.one_gpu import LATER
from diffdistill.objectives import OBJECTIVES
from diffdistill.tools import evaluate, train

# These objectives do not reduce steps, or need a teacher that knows classes.
ABSENT = {"fine_tuning", "guidance_distillation"}
FIRST = {
  "progressive",
  "classifier_features",
  "moment_matching",
  "denoising_student",
}


@pytest.fixture
def config():
  return fashion_mnist.get_config("quarter_hour")


def test_every_paper_has_a_stage_that_ends_by_the_clock(config):
  stages = [config.stages[name] for name in config.run]
  trained = {s.objective.kind for s in stages if "objective" in s}
  assert trained == set(OBJECTIVES) - ABSENT
  assert set(LATER) == trained - FIRST - {"classification", "denoising"}
  assert sum(stage.minutes for stage in stages) == pytest.approx(6)
  config.minutes = 3.0
  assert sum(stage.minutes for stage in stages) == pytest.approx(3)


@pytest.mark.long
def test_a_rehearsal_trains_and_judges_a_student_of_every_later_paper(
  config, learnable, tmp_path, monkeypatch
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  config.minutes = 0.05
  # half_hour_test.py trains the students of the first papers.
  first = {"halve", "expert", "features", "moments", "denoising_student"}
  config.run = tuple(name for name in config.run if name not in first)
  with config.unlocked():
    config.data.source = {"kind": "npz", "path": learnable, "split": "train"}
  config.model.network = {"kind": "mlp", "width": 8, "depth": 1}
  config.model.network.two_times = True
  config.classifier.update(channels=4, multipliers=(1,))
  for stage in config.stages.values():
    stage.batch_size = 8
    if "kind" in stage:
      stage.update(num_pairs=64, held_out=8, shard_size=8)
    elif stage.objective.kind == "classification":
      stage.objective.crop = 0
    elif "num_images" in stage.select:
      stage.select.update(every=5, num_images=24)
  # A judge must be trusted, so its length does not depend on the machine.
  judge = config.stages.classifier
  judge.optimizer.update(learning_rate=2e-2, warmup=0)
  judge.update(minutes=5.0, num_updates=60)
  config.evaluation.update(num_images=24, batch_size=8, gap_images=8)
  config.evaluation.num_steps = (2, 8)
  workdir = epath.Path(tmp_path) / "run"
  train.train(config, workdir)
  evaluate.evaluate(workdir, None, None)
  rows = json.loads((workdir / "evaluation.json").read_text())["rows"]
  papers = {row["paper"] for row in rows}
  assert papers == {"denoising", *LATER}
  assert all(row["FD-classifier"] >= 0 for row in rows)
