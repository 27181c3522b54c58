"""Builds an Experiment from a config, and checks that its sections agree.

`sections.py` declares the fields and `fields/builder.py` builds from them.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from diffdistill.data.facts import Facts
from diffdistill.data.record import Recorded
from diffdistill.data.record import read as read_facts
from diffdistill.data.shapes import check_image_shape
from diffdistill.denoiser import Denoiser
from diffdistill.fields import Fields, plain
from diffdistill.networks.classifier import LinenClassifier
from diffdistill.networks.network import Network
from diffdistill.run import environment, redone
from diffdistill.run.automatic import resolved_automatic
from diffdistill.run.experiment import Experiment
from diffdistill.run.imported_teacher import with_imported
from diffdistill.run.model_section import (
  classifier_of_section,
  denoiser_of_section,
  sampler_of_section,
  trace,
)
from diffdistill.run.sections import (
  BUILDER,
  Config,
  MeshSection,
  stages_of_run,
)
from diffdistill.run.stage_section import Given, stage_of_section
from diffdistill.run.workdir import stored_config
from diffdistill.system.places import resolved
from diffdistill.training.curriculum import check_judges, curriculum
from diffdistill.training.effects import (
  check_effects,
  check_images,
  check_memory,
)
from diffdistill.training.sharding import Layout, make_mesh
from diffdistill.training.stage import Round, Stage


def reopen(workdir: epath.Path) -> Experiment:
  """Builds the experiment of a workdir, on all devices.

  Raises:
    ValueError: if no run has begun there, or its config is damaged.
  """
  config = {**stored_config(workdir), "mesh": {}}
  return with_old_rounds(
    rebuild(config, facts=read_facts(workdir)), redone.entries(workdir)
  )


def with_old_rounds(
  run: Experiment,
  found: Sequence[Fields],
  devices: Sequence[Any] | None = None,
) -> Experiment:
  """Adds the old rounds that were trained again, see redone.py.

  Args:
    run: the recipe of the new rounds.
    found: the entries of redone.json.
    devices: the devices of the mesh; by default all devices.
  """
  facts = run.source.facts if isinstance(run.source, Recorded) else None
  old: list[tuple[Stage, Round]] = []
  for i, entry in enumerate(found):
    later = [other["old"] for other in found[i + 1 :]]
    before = rebuild({**entry["config"], "mesh": {}}, devices, facts)
    old += redone.old_rounds(before.rounds, entry["old"], later)
  config = redone.with_old_stages(run.config, list(found))
  return dataclasses.replace(run, config=config, old=tuple(old))


def rebuild(
  config: Fields,
  devices: Sequence[Any] | None = None,
  facts: Facts | None = None,
) -> Experiment:
  """Builds the experiment of a stored config.

  The stored config describes the model of an imported teacher. So the folder of
  the imported teacher is not needed any more.

  Args:
    config: the stored config.
    devices: the devices of the mesh; by default all devices.
    facts: recorded facts of the data; with them the data is opened only when it
      is needed.

  Raises:
    ValueError: if the config is damaged.
  """
  return _build(plain(config), devices, facts)


def build(
  config: Any,
  devices: Sequence[Any] | None = None,
  workdir: epath.Path | None = None,
) -> Experiment:
  """Builds the experiment that a config describes.

  Args:
    config: a ConfigDict, or plain values from `stored_config`.
    devices: the devices of the mesh; by default all devices.
    workdir: the workdir of the run; a teacher that was already imported into it
      is not read again, and what was chosen for it is not chosen again.

  Raises:
    ValueError: if a field is unknown or missing, has a wrong type or is out of
      range; one line, with the field's path.
  """
  fields = plain(config)
  if not isinstance(fields, dict):
    raise ValueError(f"the config is {fields!r}; return a ConfigDict of fields")
  found = resolved_automatic(resolved(fields), devices, workdir)
  built = _build(with_imported(found.fields, workdir), devices)
  return dataclasses.replace(built, chosen=found.said)


def _build(
  fields: Fields, devices: Sequence[Any] | None, facts: Facts | None = None
) -> Experiment:
  environment.pin()
  config: Config = BUILDER.build("", Config, fields)
  source = config.data.source
  if facts is not None:
    source = Recorded(facts=facts, source=source)
  check_image_shape(source.image_shape, "data.source")
  denoiser = _denoiser(config, source.image_shape, source.num_classes)
  classifier = None
  if config.classifier is not None:
    classifier = classifier_of_section("classifier", config.classifier, source)
  given = Given(
    denoiser=denoiser,
    sampler=sampler_of_section(config.sampler, denoiser),
    classifier=classifier,
    guidance=config.guidance,
    label_dropout=config.model.label_dropout,
  )
  stages: list[Stage] = []
  for name, section in stages_of_run(fields).items():
    stages.append(stage_of_section(name, section, given, source, stages))
  _check_stages(stages, config, source.image_shape)
  networks = [denoiser.network, classifier, *(s.classifier for s in stages)]
  return Experiment(
    config=json.loads(json.dumps(fields)),
    seed=config.seed,
    stages=tuple(stages),
    source=source,
    flip=config.data.flip,
    denoiser=denoiser,
    classifier=classifier,
    guidance=config.guidance,
    layout=_layout(config.mesh, devices, networks),
    cadence=config.cadence,
    evaluation=config.evaluation,
    writer=config.writer,
  )


def _denoiser(
  config: Config, image_shape: tuple[int, int, int], num_classes: int
) -> Denoiser:
  """Builds the denoiser of the run and traces it."""
  rate, conditional = config.model.label_dropout, config.data.conditional
  if rate and not conditional:
    raise ValueError(
      f"model.label_dropout is {rate}, but images have no labels; pass"
      " data.conditional=True or a label_dropout of 0"
    )
  denoiser = denoiser_of_section(
    config.model, image_shape, num_classes if conditional else 0, rate > 0
  )
  trace("model.network", denoiser.network)
  return denoiser


def _check_stages(
  stages: Sequence[Stage],
  config: Config,
  image_shape: tuple[int, int, int],
) -> None:
  """Refuses stages that do not fit each other, the evaluation or the clock."""
  curriculum(tuple(stages))
  check_effects(stages)
  check_memory(stages, image_shape)
  size = config.evaluation.batch_size
  check_images(size, image_shape, "evaluation.batch_size")
  if not config.evaluation.inception:
    check_judges(tuple(stages))
  for stage in stages:
    low, high = stage.told or (0, math.inf)
    if not low <= config.guidance.weight <= high:
      raise ValueError(
        f"guidance.weight is {config.guidance.weight:g}, with which the student"
        f" of stages.{stage.name} is judged, but it is told weights from"
        f" {low:g} to {high:g}; pass one of these"
      )
  for stage in stages if config.ends_by_the_clock else ():
    if not (stage.minutes or stage.source):
      raise ValueError(
        f"stages.{stage.name}.minutes is {stage.minutes}, but this recipe ends"
        " by the clock; pass more than 0 (num_updates stays its limit), or"
        " leave the stage out of run"
      )


def _layout(
  section: MeshSection,
  devices: Sequence[Any] | None,
  networks: Sequence[Network | LinenClassifier | None],
) -> Layout:
  """Makes the mesh, and checks that its overrides name parameters."""
  mesh = make_mesh(data=section.data, fsdp=section.fsdp, devices=devices)
  layout = Layout(
    mesh=mesh,
    overrides=section.overrides,
    frozen=section.frozen,
    trained=section.trained,
    optimizer=section.optimizer,
  )
  if layout.overrides:
    key = jax.random.key(0)
    layout.check(
      [jax.eval_shape(n.init, key) for n in networks if n is not None]
    )
  return layout
