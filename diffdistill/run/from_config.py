"""config -> Experiment: the only file that reads a ConfigDict.

The keys of a sub-dict are the fields of the dataclass that it builds, and its
`kind` names which; a key that is no field is refused.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from diffdistill.data import SOURCES
from diffdistill.data.facts import Facts
from diffdistill.data.record import Recorded
from diffdistill.data.record import read as read_facts
from diffdistill.data.shapes import check_image_shape
from diffdistill.data.sources import Source
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.precondition import EDMPrecondition, Identity
from diffdistill.diffusion.prediction import output_channels
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import (
  EDM,
  Cosine,
  CosineBeta,
  LinearBeta,
  RectifiedFlow,
  Schedule,
  Shifted,
)
from diffdistill.evaluation.comparison import Settings
from diffdistill.fields import (
  Fields,
  choose,
  make,
  plain,
  read,
  refuse_unknown,
  section,
)
from diffdistill.interop import model_folder
from diffdistill.interop.model import Model
from diffdistill.networks import CLASSIFIERS, NETWORKS
from diffdistill.networks.classifier import LinenClassifier
from diffdistill.networks.network import LinenNetwork, Network
from diffdistill.objectives import OBJECTIVES
from diffdistill.objectives.classification import Classification
from diffdistill.ranges import Range, brief
from diffdistill.run import environment
from diffdistill.run.experiment import Experiment, classifier_of
from diffdistill.run.kept_names import check_stage_name
from diffdistill.run.workdir import stored_config
from diffdistill.sampling import SAMPLERS
from diffdistill.sampling.sampler import Sampler
from diffdistill.system.places import resolved
from diffdistill.training import checkpoint
from diffdistill.training.cadence import Cadence
from diffdistill.training.curriculum import check_judges, curriculum
from diffdistill.training.effects import (
  check_effects,
  check_images,
  check_memory,
)
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.sharding import Layout, make_mesh
from diffdistill.training.stage import Pairs, Selection, Stage

SCHEDULES = {
  "cosine": Cosine,
  "linear_beta": LinearBeta,
  "cosine_beta": CosineBeta,
  "edm": EDM,
  "rectified_flow": RectifiedFlow,
}
PRECONDITIONS = {"identity": Identity, "edm": EDMPrecondition}
# The numbers of sections that are no dataclass.
MINUTES = Range(0, 10**6, "least")
LABEL_DROPOUT = Range(0, 1, "most")
DEVICES = Range(-1, 10**6)
SHIFT_FROM = Range(0, 2**14)
LARGEST_NETWORK = 10**11
SECTIONS = (
  "cadence",
  "classifier",
  "data",
  "evaluation",
  "guidance",
  "mesh",
  # That those of the stages are parts of, where a recipe ends by the clock.
  "minutes",
  "model",
  "run",
  "sampler",
  "seed",
  "stages",
)


def reopen(workdir: epath.Path) -> Experiment:
  """The experiment of a workdir, on the devices that are here.

  Raises:
    ValueError: where no run has begun there, or its config is damaged.
  """
  config = {**stored_config(workdir), "mesh": {}}
  return rebuild(config, facts=read_facts(workdir))


def rebuild(
  config: Fields,
  devices: Sequence[Any] | None = None,
  facts: Facts | None = None,
) -> Experiment:
  """The experiment of a stored config.

  What was imported is in it, and may be gone from where it was.

  Args:
    config: as stored.
    devices: of its mesh; by default those that are here.
    facts: of its data, which is then not opened before it is needed.

  Raises:
    ValueError: where it is damaged.
  """
  return _build(plain(config), devices, facts)


def build(
  config: Any,
  devices: Sequence[Any] | None = None,
  workdir: epath.Path | None = None,
) -> Experiment:
  """The experiment that a config describes.

  Args:
    config: a ConfigDict, or plain values as `stored_config` gives them.
    devices: of its mesh; by default those that are here.
    workdir: of the run; a teacher that was imported into it is not read again.

  Raises:
    ValueError: for an unknown or missing field, a wrong type or a value out of
      range; one line, with the field's path.
  """
  fields = plain(config)
  if not isinstance(fields, dict):
    raise ValueError(f"the config is {fields!r}; return a ConfigDict of fields")
  return _build(_with_imported(resolved(fields), workdir), devices)


def _with_imported(fields: Fields, workdir: epath.Path | None) -> Fields:
  """The fields, with the model of an imported teacher where there is one.

  Of the recipe's own network remains how it is computed: dropout, dtype and
  remat, where the imported kind has such fields.
  """
  for name, stage in _run(fields).items():
    place = str(stage.get("source", "")).removeprefix("imported:")
    objective = section(stage, "objective", f"stages.{name}.")
    is_classifier = objective.get("kind") == "classification"
    if is_classifier or place == stage.get("source", ""):
      continue
    if workdir is not None and checkpoint.has_final(workdir / name):
      stored = plain(stored_config(workdir))
      conditional = stored["data"].get("conditional", False)
      data = {**section(fields, "data"), "conditional": conditional}
      fields = {**fields, "model": stored["model"], "data": data}
      continue
    model = model_folder.describe(epath.Path(place))
    recipe = section(fields, "model")
    own = section(recipe, "network", "model.")
    kept = {
      field: own[field]
      for field in ("dropout", "dtype", "remat")
      if field in own and hasattr(NETWORKS[model.network["kind"]], field)
    }
    fields = {
      **fields,
      "model": {
        "network": {**model.network, **kept},
        "schedule": model.schedule,
        "output": model.output,
        "precondition": model.precondition,
        # Whether a null label is known; a rate only matters to training.
        "label_dropout": (
          recipe.get("label_dropout") or 0.1 if model.null_label else 0.0
        ),
        "origin": model.origin,
        "license": model.license,
      },
      "data": {
        **section(fields, "data"),
        "conditional": model.num_classes > 0,
      },
    }
  return fields


def _build(
  fields: Fields, devices: Sequence[Any] | None, facts: Facts | None = None
) -> Experiment:
  environment.pin()
  refuse_unknown("", fields, SECTIONS)
  minutes = read(fields, "minutes", 1.0)
  if MINUTES.refusal(minutes):
    raise ValueError(
      f"minutes is {brief(minutes)}, of which each stage has its part; pass"
      f" more than 0, at most {MINUTES.most}, or a recipe whose stages end"
      " after their num_updates"
    )
  data = section(fields, "data")
  refuse_unknown("data.", data, ("source", "conditional", "flip"))
  conditional = read(data, "conditional", False, path="data.")
  flip = read(data, "flip", False, path="data.")
  seed = read(fields, "seed", 0)
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed is {brief(seed)}; pass 0 to 2**32 - 1")
  source = choose("data.source", SOURCES, section(data, "source", "data."))
  if facts is not None:
    source = Recorded(facts=facts, source=source)
  check_image_shape(source.image_shape, "data.source")
  model = section(fields, "model")
  label_dropout = read(
    model, "label_dropout", 0.0, path="model.", allowed=LABEL_DROPOUT
  )
  if label_dropout and not conditional:
    raise ValueError(
      f"model.label_dropout is {label_dropout}, but nothing has labels; pass"
      " data.conditional=True or a label_dropout of 0"
    )
  denoiser = _denoiser(
    model,
    source.image_shape,
    source.num_classes if conditional else 0,
    label_dropout > 0,
  )
  sampler = choose(
    "sampler",
    SAMPLERS,
    section(fields, "sampler"),
    process=denoiser.process,
  )
  classifier = None
  if "classifier" in fields:
    classifier = _classifier(
      "classifier", section(fields, "classifier"), source
    )
  guidance = make("guidance", Guidance, section(fields, "guidance"))
  given = {
    "denoiser": denoiser,
    "sampler": sampler,
    "classifier": classifier,
    "guidance": guidance,
    "label_dropout": label_dropout,
  }
  _trace("model.network", denoiser.network)
  if classifier is not None:
    _trace("classifier", classifier)
  stages = []
  for name, stage in _run(fields).items():
    stages.append(_stage(name, stage, given, source, stages))
  curriculum(tuple(stages))
  check_effects(stages)
  check_memory(stages, source.image_shape)
  if "minutes" in fields:
    _check_minutes(stages)
  evaluation = make("evaluation", Settings, section(fields, "evaluation"))
  check_images(
    evaluation.batch_size, source.image_shape, "evaluation.batch_size"
  )
  if not evaluation.inception:
    check_judges(tuple(stages))
  classifiers = [
    getattr(stage.objective, "classifier", None)
    for stage in stages
    if isinstance(stage, Stage)
  ]
  networks = [
    network
    for network in (denoiser.network, classifier, *classifiers)
    if network is not None
  ]
  return Experiment(
    config=json.loads(json.dumps(fields)),
    seed=seed,
    stages=tuple(stages),
    source=source,
    flip=flip,
    denoiser=denoiser,
    classifier=classifier,
    guidance=guidance,
    layout=_layout(section(fields, "mesh"), devices, networks),
    cadence=make("cadence", Cadence, section(fields, "cadence")),
    evaluation=evaluation,
  )


def _check_minutes(stages: Sequence[Stage | Pairs]) -> None:
  """Refuses a stage without an end by the clock where others have one."""
  for stage in stages:
    if not (stage.minutes or (isinstance(stage, Stage) and stage.source)):
      raise ValueError(
        f"stages.{stage.name}.minutes is {stage.minutes}, but this recipe ends"
        " by the clock; pass more than 0 (of num_updates it makes no more in"
        " any case), or leave the stage out of run"
      )


def _trace(path: str, network: Network | LinenClassifier) -> None:
  """Meets a network that does not fit its images before anything is trained."""
  try:
    shapes = jax.eval_shape(network.init, jax.random.key(0))
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
  if count > LARGEST_NETWORK:
    raise ValueError(
      f"{path} is a network of {count:,} parameters; pass smaller fields, for"
      f" at most {LARGEST_NETWORK:,}"
    )


def _run(fields: Fields) -> dict[str, Fields]:
  """The stages that `run` names, by name and in order."""
  stages, run = section(fields, "stages"), fields.get("run", ())
  if not run or not isinstance(run, tuple):
    raise ValueError(
      f"run is {run!r}; pass a tuple of stages, of {', '.join(stages)}"
    )
  for name in run:
    if run.count(name) > 1:
      raise ValueError(f"run names the stage {name!r} twice; pass it once")
    if name not in stages:
      raise ValueError(
        f"run names the stage {name!r}; pass some of {', '.join(stages)}"
      )
    check_stage_name(name)
  return {name: section(stages, name, "stages.") for name in run}


def _layout(
  fields: Fields,
  devices: Sequence[Any] | None,
  networks: Sequence[Network | LinenClassifier],
) -> Layout:
  """The mesh, and overrides that fit the parameters of the networks."""
  refuse_unknown("mesh.", fields, ("data", "fsdp", "overrides"))
  overrides = read(fields, "overrides", (), path="mesh.")
  for override in overrides:
    if not (
      isinstance(override, tuple)
      and [type(part) for part in override] == [str, int]
    ):
      raise ValueError(
        f"mesh.overrides has {override!r}; pass pairs of a regular expression"
        " and an axis, such as (('conv_out/kernel', 2),)"
      )
  layout = Layout(
    mesh=make_mesh(
      data=read(fields, "data", -1, path="mesh.", allowed=DEVICES),
      fsdp=read(fields, "fsdp", 1, path="mesh.", allowed=DEVICES),
      devices=devices,
    ),
    overrides=overrides,
  )
  if overrides:
    key = jax.random.key(0)
    layout.check([jax.eval_shape(network.init, key) for network in networks])
  return layout


def denoiser_of(model: Model) -> Denoiser:
  """The denoiser that an imported or exported model's weights are of."""
  fields = {
    name: getattr(model, name)
    for name in ("network", "schedule", "output", "precondition")
  }
  return _denoiser(
    fields, model.image_shape, model.num_classes, model.null_label
  )


def sampler_of(model: Model, denoiser: Denoiser) -> Sampler:
  """A student's own sampler; DDIM for a teacher, which has none."""
  fields = model.sampler or {"kind": "ddim"}
  return choose("sampler", SAMPLERS, fields, process=denoiser.process)


def _denoiser(
  model: Fields,
  image_shape: tuple[int, int, int],
  num_classes: int,
  null_label: bool,
) -> Denoiser:
  """A denoiser; its null label comes after the classes of the data."""
  refuse_unknown(
    "model.",
    model,
    (
      "network",
      "schedule",
      "output",
      "precondition",
      "label_dropout",
      # For the cards of models made of an imported one.
      "origin",
      "license",
    ),
  )
  known = num_classes + null_label
  output = read(model, "output", "x0", path="model.")
  channels = image_shape[-1]
  module = choose(
    "model.network",
    NETWORKS,
    section(model, "network", "model."),
    out_channels=output_channels(output, channels),
    num_classes=known,
  )
  schedule = section(model, "schedule", "model.")
  model = {"precondition": {"kind": "identity"}, **model}
  precondition = section(model, "precondition", "model.")
  return Denoiser(
    network=LinenNetwork(
      module=module, image_shape=image_shape, num_classes=known
    ),
    process=GaussianProcess(schedule=_schedule(schedule, image_shape[0])),
    output=output,
    conditional=num_classes > 0,
    null_label=num_classes if null_label else None,
    precondition=choose("model.precondition", PRECONDITIONS, precondition),
  )


def _schedule(fields: Fields, image_size: int) -> Schedule:
  """A schedule; `shift_from` is the image size whose noise it was made for."""
  base_size = read(
    fields, "shift_from", 0, path="model.schedule.", allowed=SHIFT_FROM
  )
  fields.pop("shift_from", None)
  base = choose("model.schedule", SCHEDULES, fields)
  if not base_size:
    return base
  return Shifted(base=base, image_size=image_size, base_size=base_size)


def _classifier(path: str, fields: Fields, source: Source) -> LinenClassifier:
  settings = {
    name: fields.pop(name)
    for name in ("normalisation", "resize")
    if name in fields
  }
  fields = {"num_classes": source.num_classes, **fields}
  module = choose(path, CLASSIFIERS, fields)
  return make(
    path,
    LinenClassifier,
    settings,
    module=module,
    image_shape=source.image_shape,
  )


def _stage(
  name: str,
  fields: Fields,
  given: Fields,
  source: Source,
  earlier: list[Stage | Pairs],
) -> Stage | Pairs:
  """A stage; its own sampler, guidance or classifier come before the run's."""
  path = f"stages.{name}"
  fields = dict(fields)
  kind = read(fields, "kind", "training", path=f"{path}.")
  fields.pop("kind", None)
  if kind not in ("training", "pairs"):
    raise ValueError(f"{path}.kind is {kind!r}; pass training or pairs")
  own = [p for p in ("sampler", "guidance", "classifier") if p in fields]
  given = {**given, **_own(path, fields, given, source, earlier)}
  for part in own:
    del fields[part]
  if given["guidance"].weight > 0:
    given["denoiser"].check_guidance(given["guidance"])
  if kind == "pairs":
    _refuse_unread(path, own, {"sampler", "guidance"})
    given = {k: given[k] for k in ("sampler", "guidance")}
    return make(path, Pairs, fields, name=name, **given)
  objective = section(fields, "objective", f"{path}.")
  optimizer = section(fields, "optimizer", f"{path}.")
  select = _selection(
    f"{path}.select",
    section(fields, "select", f"{path}."),
    "held_out_loss" if fields.get("pairs") else "distance",
  )
  for part in ("objective", "optimizer", "select"):
    fields.pop(part, None)
  cls = OBJECTIVES.get(str(objective.get("kind")))
  wanted = {f.name for f in dataclasses.fields(cls)} if cls else set()
  if cls is not None:
    _refuse_unread(path, own, wanted)
  if "classifier" in wanted and given["classifier"] is None:
    raise ValueError(
      f"{path} needs a classifier and the config has none; pass"
      " classifier.kind=resnet and its fields"
    )
  if cls is Classification:
    _check_crop(path, objective, source)
    classes = given["classifier"].module.num_classes
    if classes != source.num_classes:
      raise ValueError(
        f"{path} trains a classifier of {classes} classes, but the data has"
        f" {source.num_classes}; leave num_classes out"
      )
  return make(
    path,
    Stage,
    fields,
    name=name,
    objective=choose(
      f"{path}.objective",
      OBJECTIVES,
      objective,
      **{k: v for k, v in given.items() if k in wanted},
    ),
    optimizer=make(f"{path}.optimizer", Optimizer, optimizer),
    select=select,
  )


def _selection(path: str, fields: Fields, usual: str) -> Selection | None:
  """Which weights a stage keeps; None for those at its end.

  A recipe says every=0, for the command line to change. Nothing reads the other
  fields then, so that they must be as they are where nobody has set them.
  """
  if not fields:
    return None
  if fields.get("every") != 0 or isinstance(fields["every"], bool):
    return make(path, Selection, fields)
  unread = make(path, Selection, {"by": usual, **fields, "every": 1})
  for name, value in (
    ("by", usual),
    ("patience", Selection.patience),
    ("num_images", Selection.num_images),
  ):
    if getattr(unread, name) != value:
      raise ValueError(
        f"{path}.{name} is {getattr(unread, name)!r}, but {path}.every is 0,"
        f" so that nothing is selected; pass every above 0, or {name}={value}"
      )
  return None


def _refuse_unread(path: str, own: list[str], wanted: set[str]) -> None:
  for part in own:
    if part not in wanted:
      raise ValueError(
        f"{path}.{part} is given, but its objective reads none; remove it"
      )


def _check_crop(path: str, objective: Fields, source: Source) -> None:
  """Refuses to shift images out of themselves."""
  crop, side = objective.get("crop", 0), min(source.image_shape[:2])
  if isinstance(crop, int) and crop >= side:
    raise ValueError(
      f"{path}.objective.crop is {brief(crop)}, but images are {side} pixels"
      f" wide or high; pass less than {side}"
    )


def _own(
  path: str,
  fields: Fields,
  given: Fields,
  source: Source,
  earlier: list[Stage | Pairs],
) -> Fields:
  """What a stage has of its own, in place of the run's."""
  own = {}
  if "sampler" in fields:
    own["sampler"] = choose(
      f"{path}.sampler",
      SAMPLERS,
      section(fields, "sampler", f"{path}."),
      process=given["denoiser"].process,
    )
  if "guidance" in fields:
    own["guidance"] = make(
      f"{path}.guidance", Guidance, section(fields, "guidance", f"{path}.")
    )
  if "classifier" in fields:
    own["classifier"] = _classifier(
      f"{path}.classifier",
      section(fields, "classifier", f"{path}."),
      source,
    )
    _trace(f"{path}.classifier", own["classifier"])
  else:
    # The classifier that taught itself in an earlier stage is the one it was.
    frozen = section(fields, "frozen", f"{path}.")
    for stage in earlier:
      if isinstance(stage, Stage) and stage.name == frozen.get("classifier"):
        own["classifier"] = classifier_of(stage)
  return own
