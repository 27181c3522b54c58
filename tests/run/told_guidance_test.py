"""Tests of runs whose students are told the weight of their guidance."""

import copy

import pytest

from diffdistill.diffusion.guidance import Guidance, Told
from diffdistill.run import from_config


@pytest.fixture(scope="module")
def told_config(tiny_config):
  """Makes a config with a teacher, a student that is told w, and halvings."""
  config = copy.deepcopy(tiny_config)
  stages, told = config["stages"], (0.0, 4.0)
  config["model"]["network"]["told_guidance"] = True
  config["model"]["label_dropout"] = 0.2
  config["guidance"] = {"weight": 1.0}
  config["run"] = ("teacher", "guided", "halve")
  stages["guided"] = {
    **{name: stages["halve"][name] for name in ("num_updates", "batch_size")},
    "objective": {"kind": "guidance_distillation", "told": told},
    "optimizer": {"learning_rate": 1e-2},
    "frozen": {"teacher": "teacher"},
    "num_steps": (8, 4),
  }
  stages["halve"]["objective"] = {"kind": "progressive", "told": (0.5, 3.0)}
  stages["halve"]["frozen"] = {"teacher": "guided"}
  return config


def test_a_told_student_is_sampled_at_any_weight_that_it_has_learned(
  told_config,
):
  told_config = copy.deepcopy(told_config)
  run = from_config.build(told_config)
  assert list(run.rounds) == [
    *("teacher", "guided/any", "halve/004", "halve/002", "halve/001"),
  ]
  teacher, guided, halved = (
    run.rounds[name][1] for name in ("teacher", "guided/any", "halve/002")
  )
  assert (guided.guided, guided.all_steps) == (True, (8, 4))
  assert run.usual_guidance(teacher) == Guidance(weight=1.0)
  assert run.guidance_at(teacher, 2.5) == Guidance(weight=2.5)
  for round_ in (guided, halved):
    assert run.usual_guidance(round_) == Told(weight=1.0)
    assert run.guidance_at(round_, 2.5) == Told(weight=2.5)
  assert run.guidance_at(guided, 0.0) == Told(weight=0.0)
  told_config["stages"]["guided"]["guidance"] = {"interval": (0.2, 0.8)}
  objective = from_config.build(told_config).stages[1].objective
  assert objective.guidance.interval == (0.2, 0.8)
  with pytest.raises(ValueError, match="halve/002 has learned weights from"):
    run.guidance_at(halved, 0.2)


@pytest.mark.parametrize(
  ("path", "value", "text"),
  [
    ("guidance.weight", 3.5, "guidance.weight is 3.5, with which the student of"
     " stages.halve is judged, but it is told weights from 0.5 to 3; pass"),
    ("stages.halve.objective.told", (0.0, 5.0), "halve.objective.told is"
     r" \(0.0, 5.0\), but the teacher guided/any is told weights in"),
    ("stages.halve.objective.told", (), "halve has the teacher guided/any,"
     " which is told a guidance weight, but this stage tells it none; pass"),
    ("stages.halve.frozen.teacher", "teacher", "but the teacher teacher is told"
     " no guidance weight; pass the stage of a guidance_distillation"),
    ("stages.halve.frozen.teacher", "path:elsewhere", "is told no guidance"),
    ("stages.halve.guidance", {"interval": (0.2, 0.8)}, "halve.guidance is"
     " given, but its teacher is told the weights of"),
    ("stages.guided.guidance", {"weight": 2.0}, "guided.guidance.weight is 2.0,"
     " but its student learns all weights of stages.guided.objective.told"),
    ("model.network.told_guidance", False, "the network reads no guidance"),
    ("model.label_dropout", 0.0, "was not trained without its labels; pass"),
  ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused_in_one_line(
  path, value, text, told_config
):
  config = fields = copy.deepcopy(told_config)
  *parents, name = path.split(".")
  for parent in parents:
    fields = fields[parent]
  fields[name] = value
  if path == "model.label_dropout":
    config["guidance"]["weight"] = 0.0
  with pytest.raises(ValueError, match=text) as refusal:
    from_config.build(config)
  assert "\n" not in str(refusal.value)


def test_the_teacher_of_guidance_distillation_is_no_student(told_config):
  config = copy.deepcopy(told_config)
  stages = config["stages"]
  stages["plain"] = {**stages["halve"], "objective": {"kind": "progressive"}}
  stages["plain"]["frozen"] = {"teacher": "teacher"}
  stages["guided"]["frozen"] = {"teacher": "plain"}
  config["run"] = ("teacher", "plain", "guided")
  with pytest.raises(ValueError, match="guided has the teacher plain/001, which"
                     " is a student and cannot be guided; pass"):  # fmt: skip
    from_config.build(config)
