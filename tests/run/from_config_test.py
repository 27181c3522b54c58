import copy
import json

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
from diffdistill.training.selection_by_score import Selection

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
  # The null label is one more class of the network than the images have.
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
