"""A config with a wrong field is refused in one line."""

import copy
import math

import pytest

from diffdistill.run import from_config


@pytest.mark.parametrize("minutes", [0.0, math.nan, math.inf])
def test_a_run_of_zero_or_infinite_minutes_is_refused(tiny_config, minutes):
  with pytest.raises(ValueError, match=rf"^minutes is {minutes}; pass more"):
    from_config.build({**tiny_config, "minutes": minutes})


def test_in_a_run_by_the_clock_every_stage_needs_minutes(tiny_config):
  config = {**copy.deepcopy(tiny_config), "minutes": 1.0}
  config["stages"]["teacher"]["minutes"] = 1.0
  with pytest.raises(
    ValueError, match=r"stages\.halve\.minutes is 0\.0, but this recipe ends"
  ):
    from_config.build(config)
  config["stages"]["halve"]["minutes"] = 1.0
  from_config.build(config)


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    # Fields with unknown names are refused.
    ("sed", 3, "sed is no field; did you mean seed?"),
    ("data.flipp", True, "data.flipp is no field; did you mean flip?"),
    ("model.outputs", "x0", "model.outputs is no field; did you mean output?"),
    (
      "model.network.widht",
      8,
      "model.network.widht is no field; did you mean width?",
    ),
    ("mesh.fdsp", 1, "mesh.fdsp is no field; did you mean fsdp?"),
    ("sampler.eta", 1.0, "sampler.eta is no field; remove it, or pass one of "),
    (
      "stages.halve.num_update",
      3,
      "stages.halve.num_update is no field; did you mean num_updates?",
    ),
    (
      "stages.halve.optimizer.learning_rates",
      3.0,
      "stages.halve.optimizer.learning_rates is no field; did you mean",
    ),
    ("stages.halve.objective.weight", "snr", "did you mean weighting?"),
    ("stages.halve.name", "x", "stages.halve.name is no field"),
    ("stages.halve.objective.sampler", {}, "objective.sampler is no field"),
    ("evaluation.num_image", 3, "did you mean num_images?"),
    # A missing value is refused if the field has no default.
    ("model.network.width", None, "model.network.width is missing; pass"),
    ("stages.halve.num_updates", None, "stages.halve.num_updates is missing"),
    (
      "stages.halve.optimizer.learning_rate",
      None,
      "stages.halve.optimizer.learning_rate is missing",
    ),
    ("data.source.path", None, "data.source.path is missing"),
    ("data.source", None, "data.source.kind is None; pass one of digits"),
    ("run", None, "run is (); pass a tuple of some of teacher, halve"),
    # Values of a wrong type are refused.
    ("seed", "abc", "seed is 'abc' of type str; pass int"),
    ("seed", True, "seed is True of type bool; pass int"),
    ("data.flip", "yes", "data.flip is 'yes' of type str; pass bool"),
    ("data.conditional", 1, "data.conditional is 1 of type int; pass bool"),
    ("model.output", 3, "model.output is 3 of type int; pass str"),
    ("model.network.width", 8.5, "width is 8.5 of type float; pass int"),
    ("cadence.log", True, "cadence.log is True of type bool; pass int"),
    (
      "stages.halve.optimizer.learning_rate",
      "1e-3",
      "optimizer.learning_rate is '1e-3' of type str; pass float",
    ),
    ("stages.halve.frozen", {"teacher": 3}, "stages.halve.frozen is {'teach"),
    ("evaluation.num_steps", 4, "num_steps is 4 of type int; pass tuple[int"),
    ("evaluation.num_steps", ("a",), "('a',) of type tuple; pass tuple[int"),
    ("data.source.image_size", "8", "image_size is '8' of type str; pass int"),
    ("mesh.data", "all", "mesh.data is 'all' of type str; pass int"),
    ("mesh.overrides", ("bias", 0), "mesh.overrides has 'bias'; pass pairs of"),
    ("mesh.overrides", (("bias", "0"),), "has ('bias', '0'); pass pairs of"),
    # A section may not be replaced by a single value.
    ("model.precondition", "edm", "pass a section with fields of its own"),
    ("classifier", 3, "classifier is 3; pass a section"),
    ("stages.halve", 3, "stages.halve is 3; pass a section"),
    ("run", "teacher", "run is 'teacher' of type str; pass tuple[str, ...]"),
    # The kind of a section must be a known name.
    ("data.source.kind", "cifar", "data.source.kind is 'cifar'; pass one of"),
    ("model.network.kind", "vit", "model.network.kind is 'vit'; pass one of"),
    ("model.schedule.kind", "x", "model.schedule.kind is 'x'; pass one of"),
    ("model.schedule", None, "model.schedule.kind is None; pass one of cosine"),
    ("sampler.kind", "euler", "sampler.kind is 'euler'; pass one of ddim"),
    (
      "stages.halve.objective.kind",
      "dmd",
      "stages.halve.objective.kind is 'dmd'; pass one of denoising",
    ),
    # Values of the right type are refused if they cannot be used.
    ("seed", -1, "seed is -1; pass 0 or more"),
    ("run", ("teacher", "half"), "run names the stage 'half'; pass some of"),
    ("run", ("halve",), "stages.halve.frozen names 'teacher', which is no ear"),
    ("run", ("halve", "teacher"), "the earlier ones are none"),
    (
      "mesh.overrides",
      (("dense_0", 9),),
      "overrides has ('dense_0', 9), but dense_0/bias is of shape (",
    ),
    ("mesh.overrides", (("Conv", 0),), "has 'Conv', which is found in no para"),
    ("mesh.data", 3, "mesh is data=3, fsdp=1, but there are 8 devices"),
    ("model.output", "y", "output is 'y'; pass one of"),
    ("model.network.width", 7, "model.network: width is 7; pass an even"),
    ("stages.halve.start_steps", 24, "halves from start_steps=24 to"),
    ("stages.halve.optimizer.decay", "step", "optimizer: decay is 'step'"),
    ("cadence.keep", 0, "cadence.keep is 0; pass 1 or more"),
    # Guidance must have a possible weight and interval, and a teacher for it.
    ("guidance.weight", -1.0, "guidance.weight is -1.0; pass 0 or more"),
    ("guidance.weight", 1.5, "weight is 1.5, but the teacher was not trained"),
    ("stages.halve.guidance", {"weight": 1.5}, "guidance weight is 1.5, but"),
    (
      "guidance.interval",
      (0.5, 0.2),
      "guidance interval is (0.5, 0.2); pass times (low, high)",
    ),
    ("guidance.intervals", (0.2, 0.5), "did you mean interval?"),
    ("model.label_dropout", 1.0, "model.label_dropout is 1.0; pass a val"),
    # Selection of the best weights needs a score that exists.
    (
      "stages.halve.select",
      {"by": "distance", "every": 5},
      "stages.halve.select.by is 'distance', which needs an earlier",
    ),
    (
      "stages.halve.select",
      {"by": "held_out_loss", "every": 5},
      "stages.halve.select.by is 'held_out_loss', but only pairs have a held-o",
    ),
    ("stages.halve.select", {"by": "x", "every": 5}, "select: by is 'x'; pass"),
    (
      "stages.halve.select",
      {"by": "distance"},
      "select.every is missing; pass",
    ),
    ("stages.halve.select", "distance", "select is 'distance'; pass a section"),
    # The fields of a stage must suit its kind, its objective and the run.
    ("stages.halve.kind", "x", "kind is 'x'; pass one of training, pairs"),
    (
      "stages.halve.kind",
      "pairs",
      "stages.halve.objective is no field; remove",
    ),
    (
      "stages.halve.num_steps",
      (4,),
      "num_steps is (4,), but its objective has",
    ),
    ("stages.halve.pairs", "pairs", "pairs is 'pairs', but its objective has"),
    (
      "stages.halve.objective",
      {"kind": "moment_matching"},
      "a moment-matching student is made for ancestral sampling with noise 0",
    ),
    (
      "stages.halve.objective",
      {"kind": "classifier_features"},
      "stages.halve needs a classifier and the config has none; pass classifi",
    ),
    ("stages.halve.sampler", {"kind": "x"}, "stages.halve.sampler.kind is 'x'"),
    (
      "stages.halve.frozen",
      {"teacher": "imported:x.pt"},
      "imports its teacher from 'imported:x.pt'; give that to the source",
    ),
    (
      "stages.halve.frozen",
      {"teacher": "halve/004"},
      "names 'halve/004', which is no earlier stage; the earlier ones are tea",
    ),
  ],
)
def test_a_wrong_field_is_refused_in_one_line(edited, path, value, message):
  with pytest.raises(ValueError) as error:  # noqa: PT011 (matched below)
    from_config.build(edited(path, value))
  assert message in str(error.value)
  assert "\n" not in str(error.value)


def test_label_dropout_without_labels_is_refused(edited):
  config = edited("data.conditional", False)
  config["model"]["label_dropout"] = 0.1
  with pytest.raises(
    ValueError, match=r"label_dropout is 0\.1, but images have"
  ):
    from_config.build(config)


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    (
      "pairs.num_pairs",
      None,
      "stages.pairs.num_pairs is missing; pass a value",
    ),
    (
      "pairs.num_pairs",
      30,
      "stages.pairs: num_pairs is 30, which shard_size=8",
    ),
    (
      "pairs.num_step",
      3,
      "stages.pairs.num_step is no field; did you mean num_",
    ),
    ("pairs.optimizer", {}, "stages.pairs.optimizer is no field"),
    ("pairs.frozen", {"teacher": "x"}, "stages.pairs.frozen names 'x', which"),
    (
      "pairs.guidance",
      {"weight": 1.0},
      "guidance weight is 1.0, but the teach",
    ),
    (
      "student.pairs",
      "teacher",
      "names 'teacher', which is no earlier stage o",
    ),
    (
      "student.pairs",
      None,
      "stages.student.pairs is '', but its objective nee",
    ),
    (
      "student.batch_size",
      16,
      "stages.pairs.shard_size is 8, which stages.stu",
    ),
    (
      "student.sampler",
      None,
      "a denoising student is made for one_step, not D",
    ),
    (
      "student.start_steps",
      4,
      "start_steps is 4, but its objective has no use",
    ),
  ],
)
def test_a_wrong_field_of_pairs_is_refused_in_one_line(
  pairs_config, path, value, message
):
  config = copy.deepcopy(pairs_config)
  stage, name = path.split(".")
  if value is None:
    del config["stages"][stage][name]
  else:
    config["stages"][stage][name] = value
  with pytest.raises(ValueError) as error:  # noqa: PT011 (matched below)
    from_config.build(config)
  assert message in str(error.value)
  assert "\n" not in str(error.value)


def test_a_refusal_names_the_path_of_a_stage_once(edited):
  with pytest.raises(ValueError, match=r"^stages\.halve\.batch_size is 0"):
    from_config.build(edited("stages.halve.batch_size", 0))


def test_a_value_that_is_no_config_is_refused():
  with pytest.raises(ValueError, match="the config is 3; return a ConfigDict"):
    from_config.build(3)
