import copy
import json

import pytest
from ml_collections import ConfigDict

from diffdistill import experiment
from diffdistill.diffusion.schedule import Shifted
from diffdistill.objectives.classification import Classification
from diffdistill.sampling.heun import Heun


def test_fields_reach_what_they_name(tiny_config):
  built = experiment.build(tiny_config)
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


def test_batches_are_of_the_source(tiny_config):
  built = experiment.build(tiny_config)
  pipeline = built.batches(8, 5)
  assert (pipeline.batch_size, pipeline.seed, pipeline.flip) == (8, 5, True)
  assert pipeline.batch(0)["image"].shape == (8, 2, 2, 1)


def test_kinds_are_chosen_by_name(edited):
  config = edited("sampler", {"kind": "heun", "grid": "karras"})
  config["run"] = ("teacher",)
  config["model"]["schedule"] = {"kind": "edm"}
  config["model"]["precondition"] = {"kind": "edm"}
  built = experiment.build(config)
  assert isinstance(built.stages[0].objective.sampler, Heun)
  assert type(built.denoiser.precondition).__name__ == "EDMPrecondition"
  assert type(built.denoiser.process.schedule).__name__ == "EDM"


def test_a_schedule_is_shifted_to_the_image(edited):
  built = experiment.build(
    edited("model.schedule", {"kind": "cosine", "shift_from": 32})
  )
  schedule = built.denoiser.process.schedule
  assert isinstance(schedule, Shifted)
  assert (schedule.image_size, schedule.base_size) == (2, 32)


def test_both_doubles_the_network_s_channels(edited):
  built = experiment.build(edited("model.output", "both"))
  assert built.denoiser.network.module.out_channels == 2


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


def test_a_stage_gets_the_classifier(edited):
  config = edited("classifier", CLASSIFIER)
  config["stages"]["judge"] = CLASSIFICATION
  config["run"] = ("judge",)
  built = experiment.build(config)
  assert isinstance(built.stages[0].objective, Classification)
  assert built.stages[0].objective.classifier is built.classifier
  assert built.classifier.module.num_classes == 3
  del config["classifier"]
  with pytest.raises(ValueError, match=r"stages\.judge needs a classifier and"):
    experiment.build(config)


def test_json_and_config_dicts_build_the_same(tiny_config):
  built = experiment.build(tiny_config)
  stored = json.loads(json.dumps(built.config))
  for config in (stored, ConfigDict(tiny_config).lock()):
    again = experiment.build(config)
    assert again.config == built.config
    for field in ("seed", "source", "flip", "denoiser", "cadence", "rounds"):
      assert getattr(again, field) == getattr(built, field), field


def test_building_changes_nothing_it_is_given(tiny_config):
  before = copy.deepcopy(tiny_config)
  experiment.build(tiny_config)
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
    # Missing ones.
    ("model.network.width", None, "model.network.width is missing; pass"),
    ("stages.halve.num_updates", None, "stages.halve.num_updates is missing"),
    (
      "stages.halve.optimizer.learning_rate",
      None,
      "stages.halve.optimizer.learning_rate is missing",
    ),
    ("data.source.path", None, "data.source.path is missing"),
    ("data.source", None, "data.source.kind is None; pass one of digits"),
    ("run", None, "run is (); pass a tuple of stages, of teacher, halve"),
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
    # Sections.
    ("model.precondition", "edm", "pass a section with fields of its own"),
    ("classifier", 3, "classifier is 3; pass a section"),
    ("stages.halve", 3, "stages.halve is 3; pass a section"),
    ("run", "teacher", "run is 'teacher'; pass a tuple of stages"),
    # Kinds.
    ("data.source.kind", "cifar", "data.source.kind is 'cifar'; pass one of"),
    ("model.network.kind", "dit", "model.network.kind is 'dit'; pass one of"),
    ("model.schedule.kind", "x", "model.schedule.kind is 'x'; pass one of"),
    ("model.schedule", None, "model.schedule.kind is None; pass one of cosine"),
    ("sampler.kind", "euler", "sampler.kind is 'euler'; pass one of ddim"),
    (
      "stages.halve.objective.kind",
      "dmd",
      "stages.halve.objective.kind is 'dmd'; pass one of denoising",
    ),
    # Values.
    ("seed", -1, "seed is -1; pass 0 to 2**32 - 1"),
    ("run", ("teacher", "half"), "run names the stage 'half'; pass some of"),
    ("run", ("halve",), "stages.halve.frozen names 'teacher', which is no ear"),
    ("run", ("halve", "teacher"), "the earlier ones are none"),
    ("mesh.data", 3, "mesh is data=3, fsdp=1, but there are 8 devices"),
    ("model.output", "y", "output is 'y'; pass one of"),
    ("model.network.width", 7, "model.network: width is 7; pass an even"),
    ("stages.halve.start_steps", 24, "halves from start_steps=24 to"),
    ("stages.halve.optimizer.decay", "step", "optimizer: decay is 'step'"),
    ("cadence.keep", 0, "cadence.keep 0; pass 1 or more"),
  ],
)
def test_refuses_in_one_line(edited, path, value, message):
  with pytest.raises(ValueError) as error:  # noqa: PT011 (matched below)
    experiment.build(edited(path, value))
  assert message in str(error.value)
  assert "\n" not in str(error.value)


def test_says_a_stage_s_path_once(edited):
  with pytest.raises(ValueError, match=r"^stages\.halve\.batch_size is 0"):
    experiment.build(edited("stages.halve.batch_size", 0))


def test_refuses_what_is_no_config():
  with pytest.raises(ValueError, match="the config is 3; return a ConfigDict"):
    experiment.build(3)
