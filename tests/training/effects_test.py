"""Tests that a field of a recipe without an effect is refused or reported."""

import copy

import pytest

from diffdistill.run import from_config
from diffdistill.training.cadence import Cadence
from diffdistill.training.effects import check_memory, notes

CLASSIFICATION = {
  "objective": {"kind": "classification"},
  "optimizer": {"learning_rate": 1e-3},
  "num_updates": 20,
  "batch_size": 8,
}


@pytest.fixture(scope="module")
def config(pairs_config):
  """Makes a config with a judge, a teacher, one halving, a student of pairs."""
  config = copy.deepcopy(pairs_config)
  stages = config["stages"]
  stages["judge"] = copy.deepcopy(CLASSIFICATION)
  stages["halve"] = {
    "objective": {"kind": "progressive"},
    "optimizer": {"learning_rate": 1e-2},
    "num_updates": 20,
    "batch_size": 8,
    "frozen": {"teacher": "teacher"},
    "start_steps": 4,
  }
  config["run"] = ("judge", "teacher", "halve", "pairs", "student")
  config["classifier"] = {
    "kind": "resnet",
    "channels": 4,
    "multipliers": (1,),
    "num_blocks": 1,
  }
  return config


def changed(config, path, value):
  config = copy.deepcopy(config)
  *parents, name = path.split(".")
  fields = config
  for parent in parents:
    fields = fields[parent]
  fields[name] = value
  return config


NEVER = {"by": "distance", "every": 0}
STUDENT = {"by": "held_out_loss", "every": 4}


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    (
      "stages.teacher.optimizer.warmup",
      7,
      "stages.teacher.optimizer.warmup is 7, but its rounds have 6 updates;"
      " pass 6 or less, or more num_updates",
    ),
    (
      "stages.halve.updates_per_call",
      21,
      "stages.halve.updates_per_call is 21, but its rounds have 20",
    ),
    (
      "stages.teacher.optimizer.learning_rate",
      0.0,
      "stages.teacher.optimizer.learning_rate is 0, so that nothing is learned",
    ),
    ("stages.teacher.end_steps", 2, "end_steps is 2, but its objective halves"),
    ("stages.judge.long_rounds", 1, "long_rounds is 1, but its objective hal"),
    ("stages.halve.long_rounds", 5, "students have at most 2 steps; pass 2 or"),
    (
      "stages.halve.select",
      {"by": "distance", "every": 41},
      "stages.halve.select.every is 41, but its rounds have 40 updates",
    ),
    (
      "stages.student.select",
      {**STUDENT, "patience": 5},
      "select.patience is 5 times every=4 updates, but its rounds have 18",
    ),
    # Without `select.by`, the other fields of `select` have no effect.
    (
      "stages.halve.select",
      {**NEVER, "num_images": 2000},
      "stages.halve.select.num_images is 2000, but stages.halve.select.every is"
      " 0, so that nothing is selected; pass every above 0, or num_images=1000",
    ),
    (
      "stages.halve.select",
      {**NEVER, "patience": 1},
      "patience is 1, but",
    ),
    ("stages.halve.select", {**NEVER, "pacience": 1}, "did you mean patience?"),
    ("stages.halve.select", {**NEVER, "num_images": 1}, "pass 20 or more"),
    ("stages.halve.select", {"by": "x", "every": 0}, "by is 'x'; pass one of"),
    (
      "stages.halve.select",
      {"by": "held_out_loss", "every": 0},
      "select.by is 'held_out_loss', but stages.halve.select.every is 0",
    ),
    ("stages.halve.select", {"by": "distance", "every": False}, "type bool"),
    # No machine has enough memory for this batch.
    ("stages.halve.batch_size", 10**19, "batch_size is 10000000000000000000;"),
    (
      "stages.judge.objective.crop",
      2,
      "stages.judge.objective.crop is 2, but images are 2 pixels wide",
    ),
    ("stages.judge.objective.crop", 10**9, "crop is 1000000000, but images"),
    ("model.network.width", 10**9, "width is 1000000000; pass 4 or more, at"),
    ("model.network.depth", 10**9, "depth is 1000000000; pass 1 or more, at"),
    ("evaluation", {"num_images": 10**15}, "pass 20 or more, at most 10000000"),
    ("evaluation", {"num_steps": (4, 4)}, "num_steps is (4, 4); pass each"),
    # Float32 cannot hold these numbers.
    (
      "minutes",
      10**400,
      "minutes is a whole number of more than 60",
    ),
    (
      "model.schedule",
      {"kind": "cosine", "logsnr_max": float("inf")},
      "is inf",
    ),
    ("stages.judge.objective.noise", float("nan"), "noise is nan; pass 0 or"),
  ],
)
def test_fields_without_an_effect_are_refused_in_one_line(
  config, path, value, message
):
  with pytest.raises(ValueError) as error:  # noqa: PT011 (matched below)
    from_config.build(changed(config, path, value))
  assert message in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("path", "value"),
  [
    ("stages.teacher.optimizer.warmup", 6),
    ("stages.halve.long_rounds", 4),
    ("stages.halve.select", NEVER),
    ("stages.student.select", {"by": "held_out_loss", "every": 0}),
    ("stages.student.select", {**STUDENT, "every": 18}),
    ("stages.judge.objective.crop", 1),
  ],
)
def test_fields_with_an_effect_are_accepted(config, path, value):
  from_config.build(changed(config, path, value))


def test_only_fine_tuning_may_have_a_learning_rate_of_0(config):
  """Fine-tuning at a rate of 0 still estimates the teacher's second moments."""
  config = changed(config, "stages.teacher.num_updates", 6)
  config["stages"]["moments"] = {
    **CLASSIFICATION,
    "objective": {"kind": "fine_tuning"},
    "optimizer": {"learning_rate": 0.0},
    "frozen": {"teacher": "teacher"},
  }
  config["run"] = ("teacher", "moments")
  from_config.build(config)


def test_imported_weights_need_no_schedule_of_training(config):
  config = changed(config, "stages.teacher.source", "path:runs/a/teacher")
  config["run"] = ("teacher", "halve")
  config["stages"]["teacher"]["optimizer"]["warmup"] = 100
  from_config.build(config)


def test_a_batch_that_no_machine_holds_is_refused(config):
  stages = from_config.build(config).stages
  check_memory(stages, (2, 2, 1))
  with pytest.raises(
    ValueError,
    match=r"stages\.judge\.batch_size is 8, and so many images of \(32768,"
    r" 32768, 3\) take 96 GiB; pass at most 2$",
  ):
    check_memory(stages, (2**15, 2**15, 3))


def test_a_cadence_longer_than_every_round_is_reported(config):
  stages = from_config.build(config).stages
  assert list(notes(stages, Cadence(log=40, checkpoint=40, observe=0))) == []
  log, checkpoint, observe = notes(
    stages, Cadence(log=41, checkpoint=42, observe=43)
  )
  assert log == (
    "cadence.log is 41, but no round has more than 40 updates: only the last"
    " update of each round is logged"
  )
  assert checkpoint.endswith(
    "a round that is killed begins again at its first update"
  )
  assert observe.startswith("cadence.observe is 43, but no round has more than")
