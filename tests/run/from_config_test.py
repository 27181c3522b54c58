import copy
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from diffdistill.arrays import Condition
from diffdistill.configs import digits
from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.schedule import Shifted
from diffdistill.diffusion.timesteps import Lognormal
from diffdistill.images import to_host
from diffdistill.objectives.classification import Classification
from diffdistill.run import from_config
from diffdistill.sampling.ddim import DDIM
from diffdistill.sampling.heun import Heun
from diffdistill.sampling.one_step import OneStep
from diffdistill.training.selection import Selection

CLASSIFIER = {
  "kind": "resnet",
  "channels": 4,
  "multipliers": (1,),
  "num_blocks": 1,
}
CLASSIFICATION = {
  "objective": {"kind": "classification"},
  "optimizer": {"learning_rate": 1e-3},
  "num_updates": 1,
  "batch_size": 8,
}


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


def test_fields_reach_the_objects_that_they_configure(tiny_config):
  built = from_config.build(tiny_config)
  assert built.seed == 3
  assert built.flip
  assert built.denoiser.conditional
  assert built.denoiser.network.num_classes == 3
  assert built.denoiser.network.image_shape == (2, 2, 1)
  assert built.denoiser.output == "x0"
  assert (built.cadence.log, built.cadence.checkpoint) == (4, 5)
  teacher, halve = built.stages
  assert teacher.optimizer.warmup == 3
  assert teacher.objective.sampler is halve.objective.sampler
  assert halve.objective.denoiser == built.denoiser
  assert (halve.start_steps, halve.long_rounds) == (8, 0)
  assert list(built.rounds) == [
    "teacher",
    "halve/004",
    "halve/002",
    "halve/001",
  ]
  assert built.classifier is None


def test_batches_come_from_the_source(tiny_config):
  built = from_config.build(tiny_config)
  pipeline = built.batches(8, 5)
  assert (pipeline.batch_size, pipeline.seed, pipeline.flip) == (8, 5, True)
  assert pipeline.batch(0)["image"].shape == (8, 2, 2, 1)


def test_a_mesh_may_have_other_devices_and_overrides_place_parameters(edited):
  config = edited("mesh", {"fsdp": 2, "overrides": (("kernel", -1),)})
  built = from_config.build(config, devices=jax.devices()[2:6])
  assert built.mesh.shape == {"data": 2, "fsdp": 2}
  assert set(built.mesh.devices.ravel()) == set(jax.devices()[2:6])
  assert built.layout.overrides == (("kernel", -1),)
  # The config may come from JSON, or from a ConfigDict of the command line.
  for again in (built.config, ConfigDict(config)):
    assert from_config.build(again).layout.overrides == (("kernel", -1),)


def test_an_override_may_name_parameters_of_a_stage_s_classifier(edited):
  config = edited("classifier", CLASSIFIER)
  config["stages"]["judge"] = {
    **CLASSIFICATION,
    "classifier": {**CLASSIFIER, "num_blocks": 2},
  }
  config["run"] = ("judge",)
  # Only the stage's own classifier has two blocks.
  config["mesh"] = {
    "data": 4,
    "fsdp": 2,
    "overrides": (("block_1/conv1/bias", 0),),
  }
  assert from_config.build(config).layout.overrides


def test_kinds_are_chosen_by_name(edited):
  config = edited("sampler", {"kind": "heun", "grid": "karras"})
  config["run"] = ("teacher",)
  config["model"]["schedule"] = {"kind": "edm"}
  config["model"]["precondition"] = {"kind": "edm"}
  draw = {"kind": "lognormal", "mean": -1.0}
  config["stages"]["teacher"]["objective"]["draw"] = draw
  built = from_config.build(config)
  assert isinstance(built.stages[0].objective.sampler, Heun)
  assert built.stages[0].objective.draw == Lognormal(mean=-1.0)
  assert type(built.denoiser.precondition).__name__ == "EDMPrecondition"
  assert type(built.denoiser.process.schedule).__name__ == "EDM"


def test_a_schedule_is_shifted_to_the_image_size(edited):
  built = from_config.build(
    edited("model.schedule", {"kind": "cosine", "shift_from": 32})
  )
  schedule = built.denoiser.process.schedule
  assert isinstance(schedule, Shifted)
  assert (schedule.image_size, schedule.base_size) == (2, 32)


def test_the_output_both_doubles_the_network_s_channels(edited):
  built = from_config.build(edited("model.output", "both"))
  assert built.denoiser.network.module.out_channels == 2


def test_a_stage_gets_the_run_s_classifier(edited):
  config = edited("classifier", CLASSIFIER)
  config["stages"]["judge"] = CLASSIFICATION
  config["run"] = ("judge",)
  built = from_config.build(config)
  assert isinstance(built.stages[0].objective, Classification)
  assert built.stages[0].objective.classifier is built.classifier
  assert built.classifier.module.num_classes == 3
  del config["classifier"]
  with pytest.raises(ValueError, match=r"stages\.judge needs a classifier and"):
    from_config.build(config)


def test_a_null_label_comes_after_the_classes(edited):
  built = from_config.build(edited("model.label_dropout", 0.1))
  assert built.denoiser.null_label == 3
  # The network has one class more than the images.
  assert built.denoiser.network.num_classes == 4
  assert built.generator(built.stages[0].objective.sampler, 8).num_classes == 3
  teacher, halve = built.stages
  assert teacher.objective.label_dropout == 0.1
  assert halve.objective.guidance == built.guidance == Guidance()


def test_a_stage_has_its_own_guidance_or_the_run_s(edited):
  config = edited("model.label_dropout", 0.1)
  config["guidance"] = {"weight": 0.5, "interval": (0.2, 0.8)}
  built = from_config.build(config)
  assert built.guidance == Guidance(weight=0.5, interval=(0.2, 0.8))
  assert built.stages[1].objective.guidance is built.guidance
  # A teacher is sampled with guidance; a student has guidance in its weights.
  teacher, student = (built.rounds[n][1] for n in ("teacher", "halve/004"))
  assert built.usual_guidance(teacher) is built.guidance
  assert built.usual_guidance(student) is None
  config["stages"]["halve"]["guidance"] = {"weight": 2.0}
  built = from_config.build(config)
  assert built.stages[1].objective.guidance == Guidance(weight=2.0)
  assert built.guidance.weight == 0.5


def test_a_generator_guides_its_model(edited, moved):
  built = from_config.build(edited("model.label_dropout", 0.1))
  sampler, params = built.stages[0].objective.sampler, moved(built)
  generator = built.generator(sampler, 8, guidance=Guidance(weight=2.0))
  # The result of one DDIM step is the guided x0 at the first time.
  images = to_host(next(generator.batches(params, 0, 8, 1)))
  told, untold = (
    built.denoiser(
      params, generator.noise(0, 0), jnp.ones(8), Condition(label=label)
    ).x0
    for label in (generator.labels(0), jnp.full(8, 3))
  )
  np.testing.assert_allclose(
    images, np.clip(told + 2 * (told - untold), -1, 1), atol=1e-5
  )
  assert np.abs(images - np.clip(told, -1, 1)).max() > 0.01


def test_a_stage_may_have_its_own_sampler(pairs_config):
  built = from_config.build(pairs_config)
  teacher, pairs, student = built.stages
  assert isinstance(teacher.objective.sampler, DDIM)
  assert isinstance(student.objective.sampler, OneStep)
  assert pairs.makes == "pairs"
  assert pairs.sampler is teacher.objective.sampler
  assert (pairs.num_pairs, pairs.held_out, pairs.num_steps) == (32, 16, 4)
  assert student.select == Selection(by="held_out_loss", every=4)
  assert student.pairs == "pairs"
  assert list(built.rounds) == ["teacher", "pairs", "student/001"]


def test_a_recipe_s_stages_select_weights_if_the_config_says_so():
  config = digits.get_config("progressive")
  assert all(stage.select is None for stage in from_config.build(config).stages)
  config.stages.halve.select.every = 250
  *_, halve = from_config.build(config).stages
  assert halve.select == Selection(by="distance", every=250)


def test_a_frozen_classifier_has_the_architecture_of_its_stage(judged):
  judged["stages"]["judge"]["classifier"] = {**CLASSIFIER, "channels": 8}
  judge, _, halve = from_config.build(judged).stages
  assert judge.objective.classifier.module.channels == 8
  assert halve.objective.classifier is judge.objective.classifier
  # A classifier from outside the run has the config's architecture, or the
  # stage's.
  judged["stages"]["halve"]["frozen"]["classifier"] = "path:runs/a/judge"
  *_, halve = from_config.build(judged).stages
  assert halve.objective.classifier.module.channels == 4
  judged["stages"]["halve"]["classifier"] = {**CLASSIFIER, "channels": 6}
  *_, halve = from_config.build(judged).stages
  assert halve.objective.classifier.module.channels == 6


def test_json_and_config_dicts_build_the_same(tiny_config):
  built = from_config.build(tiny_config)
  stored = json.loads(json.dumps(built.config))
  for config in (stored, ConfigDict(tiny_config).lock()):
    again = from_config.build(config)
    assert again.config == built.config
    for field in ("seed", "source", "flip", "denoiser", "cadence", "rounds"):
      assert getattr(again, field) == getattr(built, field), field


def test_building_does_not_change_the_given_config(tiny_config):
  before = copy.deepcopy(tiny_config)
  from_config.build(tiny_config)
  assert tiny_config == before


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    # Unknown fields.
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
    # Missing fields.
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
    # Types.
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
    # Sections.
    ("model.precondition", "edm", "pass a section with fields of its own"),
    ("classifier", 3, "classifier is 3; pass a section"),
    ("stages.halve", 3, "stages.halve is 3; pass a section"),
    ("run", "teacher", "run is 'teacher' of type str; pass tuple[str, ...]"),
    # Kinds.
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
    # Values.
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
    # Guidance.
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
    # Selection.
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
    # Stages of other kinds.
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
