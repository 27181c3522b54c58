"""Builds one stage of a config, with the parts that the run gives to it."""

import dataclasses
from typing import Any

from diffdistill.data.sources import Source
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.guidance import Guidance
from diffdistill.fields import Fields, join
from diffdistill.fields.builder import settable, split
from diffdistill.networks.classifier import LinenClassifier
from diffdistill.objectives import OBJECTIVES
from diffdistill.objectives.classification import Classification
from diffdistill.ranges import brief
from diffdistill.run.model_section import classifier_of_section
from diffdistill.run.sections import BUILDER, STAGES, OwnSections, raw_section
from diffdistill.sampling.sampler import Sampler
from diffdistill.training.pairs_stage import Pairs
from diffdistill.training.selection_by_score import Selection
from diffdistill.training.stage import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
  """The parts that a run gives to each stage.

  A stage's own sections replace these parts.

  Args:
    denoiser, sampler, classifier, guidance: the parts of the run.
    label_dropout: the `label_dropout` of the model section.
  """

  denoiser: Denoiser
  sampler: Sampler
  classifier: LinenClassifier | None
  guidance: Guidance
  label_dropout: float


def stage_of_section(
  name: str,
  fields: Fields,
  given: Given,
  source: Source,
  earlier: list[Stage],
) -> Stage:
  """Builds a stage, and its objective from the parts that it has fields for.

  Args:
    name: the name of the stage.
    fields: the fields of its section.
    given: the parts that the run gives.
    source: the source of the images.
    earlier: the stages before it.

  Raises:
    ValueError: if a field does not fit.
  """
  path = f"stages.{name}"
  own, fields = split(OwnSections, {"kind": "training", **fields})
  given = _with_own(path, own, fields, given, source, earlier)
  if given.guidance.weight > 0:
    given.denoiser.check_guidance(given.guidance)
  if fields["kind"] == "training":
    fields = _prepared(path, fields)
    kind = raw_section(fields, "objective", path).get("kind")
    taker = OBJECTIVES.get(str(kind))
  else:
    taker = Pairs
  takes = set(settable(taker)) if taker else set()
  for part in own if taker else ():
    if part not in takes:
      raise ValueError(
        f"{path}.{part} is given, but its objective reads none; remove it"
      )
  if "classifier" in takes:
    if given.classifier is None:
      raise ValueError(
        f"{path} needs a classifier and the config has none; pass"
        " classifier.kind=resnet and its fields"
      )
    if taker is Classification:
      _check_classes(path, fields["objective"], given.classifier, source)
  stage = BUILDER.choose(path, STAGES, fields, {"name": name, **vars(given)})
  if stage.told and "guidance" in own:
    _check_told(path, own["guidance"], stage)
  return stage


def _check_told(path: str, guidance: Fields, stage: Stage) -> None:
  """Refuses a stage's own guidance where the told weights replace it."""
  if stage.teacher_told:
    raise ValueError(
      f"{path}.guidance is given, but its teacher is told the weights of"
      f" {path}.objective.told and is not guided; remove it"
    )
  if "weight" in guidance:
    raise ValueError(
      f"{path}.guidance.weight is {guidance['weight']}, but its student learns"
      f" all weights of {path}.objective.told; remove it, and pass"
      " guidance.weight for the one with which it is judged"
    )


def _with_own(
  path: str,
  own: Fields,
  fields: Fields,
  given: Given,
  source: Source,
  earlier: list[Stage],
) -> Given:
  """Replaces parts of the run by those of the stage's own sections."""
  sections = BUILDER.build(
    path, OwnSections, own, {"process": given.denoiser.process}
  )
  parts: dict[str, Any] = {
    name: getattr(sections, name) for name in ("sampler", "guidance")
  }
  if sections.classifier is not None:
    parts["classifier"] = classifier_of_section(
      f"{path}.classifier", sections.classifier, source
    )
  else:
    # Reuse the architecture of the stage that trained this classifier.
    frozen = raw_section(fields, "frozen", path).get("classifier")
    for stage in earlier:
      if stage.name == frozen:
        parts["classifier"] = stage.classifier
  present = {name: part for name, part in parts.items() if part is not None}
  return dataclasses.replace(given, **present)


def _prepared(path: str, fields: Fields) -> Fields:
  """The fields of a training stage, made ready to build.

  A recipe sets select.every=0 so that the command line can change it. Such a
  selection never takes place and is left out. Nothing reads its other fields,
  so they must have their defaults.
  """
  usual_optimizer = raw_section(fields, "optimizer", path)
  own = raw_section(fields, "optimizers", path)
  if own:
    # A tree's own optimizer changes some fields of the stage's optimizer.
    where = join(path, "optimizers")
    merged = {n: {**usual_optimizer, **raw_section(own, n, where)} for n in own}
    fields = {**fields, "optimizers": merged}
  select = raw_section(fields, "select", path)
  rest = {name: value for name, value in fields.items() if name != "select"}
  if not select:
    return rest
  if select.get("every") != 0 or isinstance(select["every"], bool):
    return fields
  where = join(path, "select")
  usual = "held_out_loss" if fields.get("pairs") else "distance"
  unread = BUILDER.build(where, Selection, {"by": usual, **select, "every": 1})
  for name, value in (
    ("by", usual),
    ("patience", Selection.patience),
    ("num_images", Selection.num_images),
  ):
    if getattr(unread, name) != value:
      raise ValueError(
        f"{where}.{name} is {getattr(unread, name)!r}, but {where}.every is 0,"
        f" so that nothing is selected; pass every above 0, or {name}={value}"
      )
  return rest


def _check_classes(
  path: str, objective: Fields, classifier: LinenClassifier, source: Source
) -> None:
  """Refuses a classifier whose classes or crops do not fit the data."""
  crop, side = objective.get("crop", 0), min(source.image_shape[:2])
  if isinstance(crop, int) and crop >= side:
    raise ValueError(
      f"{path}.objective.crop is {brief(crop)}, but images are {side} pixels"
      f" wide or high; pass less than {side}"
    )
  classes: Any = getattr(classifier.module, "num_classes")  # noqa: B009
  if classes != source.num_classes:
    raise ValueError(
      f"{path} trains a classifier of {classes} classes, but the data has"
      f" {source.num_classes}; leave num_classes out"
    )
