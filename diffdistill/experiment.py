"""config -> Experiment: the only file that reads a ConfigDict.

The keys of a sub-dict are the fields of the dataclass that it builds, and its
`kind` names which; a key that is no field is refused.
"""

import dataclasses
import difflib
import functools
import json
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Int

from diffdistill.arrays import Image, Key, Label, Params
from diffdistill.data import SOURCES
from diffdistill.data.pipeline import Pipeline
from diffdistill.data.sources import Source
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.precondition import EDMPrecondition, Identity
from diffdistill.diffusion.prediction import output_channels
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import (
  EDM,
  Cosine,
  LinearBeta,
  RectifiedFlow,
  Schedule,
  Shifted,
)
from diffdistill.evaluation.comparison import Settings
from diffdistill.evaluation.evaluator import Generator
from diffdistill.files import write_atomically
from diffdistill.networks import CLASSIFIERS, NETWORKS
from diffdistill.networks.classifier import LinenClassifier
from diffdistill.networks.network import LinenNetwork
from diffdistill.objectives import OBJECTIVES
from diffdistill.sampling import SAMPLERS
from diffdistill.sampling.sampler import Sampler
from diffdistill.training import checkpoint
from diffdistill.training.curriculum import Round, Stage, curriculum
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.sharding import make_mesh
from diffdistill.training.trainer import Cadence

SCHEDULES = {
  "cosine": Cosine,
  "linear_beta": LinearBeta,
  "edm": EDM,
  "rectified_flow": RectifiedFlow,
}
PRECONDITIONS = {"identity": Identity, "edm": EDMPrecondition}
SECTIONS = (
  "cadence",
  "classifier",
  "data",
  "evaluation",
  "mesh",
  "model",
  "run",
  "sampler",
  "seed",
  "stages",
)
# What may differ from the config a workdir was made with: it does not change
# what is trained.
FREE_TO_CHANGE = ("cadence", "evaluation", "mesh")

Fields = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """A recipe, built: everything a command needs, nothing started yet."""

  config: Fields
  seed: int
  stages: tuple[Stage, ...]
  source: Source
  flip: bool
  denoiser: Denoiser
  classifier: LinenClassifier | None
  mesh: Mesh
  cadence: Cadence
  evaluation: Settings

  @functools.cached_property
  def rounds(self) -> dict[str, tuple[Stage, Round]]:
    """Every round by name, in order."""
    return {r.name: (stage, r) for stage, r in curriculum(self.stages)}

  def batches(self, batch_size: int, seed: int) -> Pipeline:
    """This process's rows of the training data."""
    return Pipeline(
      source=self.source,
      batch_size=batch_size,
      seed=seed,
      flip=self.flip,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )

  def generator(
    self, sampler: Sampler, batch_size: int, label: int | None = None
  ) -> Generator:
    """Images of any weights of this experiment's denoiser."""

    def sample(
      params: Params,
      noise: Image,
      label: Label | None,
      key: Key,
      num_steps: Int[Array, ""],
    ) -> Image:
      x = sampler.start(noise, num_steps)
      return sampler(self.denoiser.bind(params, label), x, key, num_steps)

    return Generator(
      sample=sample,
      image_shape=self.source.image_shape,
      num_classes=self.source.num_classes if self.denoiser.conditional else 0,
      label=label,
      mesh=self.mesh,
      batch_size=batch_size,
    )

  def product(self, workdir: epath.Path, round_name: str) -> Params:
    """The weights that a finished round made."""
    stage, _ = self.rounds[round_name]
    name = stage.objective.trains[0]
    return checkpoint.load_final(workdir / round_name, name, self.mesh)

  def claim(self, workdir: epath.Path) -> None:
    """Makes a workdir this config's own, or checks that it is.

    Raises:
      ValueError: where another config made it; names one field.
    """
    path = workdir / "config.json"
    if not path.exists():
      write_atomically(path, json.dumps(self.config, indent=2) + "\n")
      return
    theirs, ours = (
      dict(_flat({k: v for k, v in c.items() if k not in FREE_TO_CHANGE}))
      for c in (stored_config(workdir), self.config)
    )
    for key in sorted(theirs.keys() | ours.keys()):
      if theirs.get(key) != ours.get(key):
        raise ValueError(
          f"{workdir} was made with another config: {key} is"
          f" {theirs.get(key)!r} there and {ours.get(key)!r} here; pass a new"
          " --workdir, or the config it was made with"
        )


def stored_config(workdir: epath.Path) -> Fields:
  """The config that a workdir was made with.

  Raises:
    ValueError: where no run has begun there, or its config is damaged.
  """
  path = workdir / "config.json"
  if not path.exists():
    raise ValueError(
      f"{workdir} holds no run (it has no config.json); pass the --workdir of"
      " a training"
    )
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(
      f"{path} is damaged ({error}); restore it, or pass a new --workdir"
    ) from error


def build(config: Mapping[str, Any]) -> Experiment:
  """The experiment that a config describes.

  Args:
    config: plain values, as `get_config` or `stored_config` give them.

  Raises:
    ValueError: for an unknown or missing field, a wrong type or a value out of
      range; one line, with the field's path.
  """
  fields = _plain(config)
  if not isinstance(fields, dict):
    raise ValueError(f"the config is {fields!r}; return a ConfigDict of fields")
  _refuse_unknown("", fields, SECTIONS)
  data = _section(fields, "data")
  _refuse_unknown("data.", data, ("source", "conditional", "flip"))
  conditional = _value(data, "conditional", False, path="data.")
  flip = _value(data, "flip", False, path="data.")
  seed = _value(fields, "seed", 0)
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed is {seed}; pass 0 to 2**32 - 1")
  source = _choose("data.source", SOURCES, _section(data, "source", "data."))
  model = _section(fields, "model")
  denoiser = _denoiser(model, source, source.num_classes if conditional else 0)
  sampler = _choose(
    "sampler",
    SAMPLERS,
    _section(fields, "sampler"),
    process=denoiser.process,
  )
  classifier = None
  if "classifier" in fields:
    classifier = _classifier(_section(fields, "classifier"), source)
  given = {"denoiser": denoiser, "sampler": sampler, "classifier": classifier}
  stages = tuple(
    _stage(name, stage, given) for name, stage in _run(fields).items()
  )
  curriculum(stages)
  return Experiment(
    config=json.loads(json.dumps(fields)),
    seed=seed,
    stages=stages,
    source=source,
    flip=flip,
    denoiser=denoiser,
    classifier=classifier,
    mesh=_mesh(_section(fields, "mesh")),
    cadence=_make("cadence", Cadence, _section(fields, "cadence")),
    evaluation=_make("evaluation", Settings, _section(fields, "evaluation")),
  )


def _run(fields: Fields) -> dict[str, Fields]:
  """The stages that `run` names, by name and in order."""
  stages, run = _section(fields, "stages"), fields.get("run", ())
  if not run or not isinstance(run, tuple):
    raise ValueError(
      f"run is {run!r}; pass a tuple of stages, of {', '.join(stages)}"
    )
  for name in run:
    if name not in stages:
      raise ValueError(
        f"run names the stage {name!r}; pass some of {', '.join(stages)}"
      )
  return {name: _section(stages, name, "stages.") for name in run}


def _mesh(fields: Fields) -> Mesh:
  _refuse_unknown("mesh.", fields, ("data", "fsdp"))
  return make_mesh(
    data=_value(fields, "data", -1, path="mesh."),
    fsdp=_value(fields, "fsdp", 1, path="mesh."),
  )


def _denoiser(model: Fields, source: Source, num_classes: int) -> Denoiser:
  _refuse_unknown(
    "model.", model, ("network", "schedule", "output", "precondition")
  )
  output = _value(model, "output", "x0", path="model.")
  channels = source.image_shape[-1]
  module = _choose(
    "model.network",
    NETWORKS,
    _section(model, "network", "model."),
    out_channels=output_channels(output, channels),
    num_classes=num_classes,
  )
  schedule = _section(model, "schedule", "model.")
  model = {"precondition": {"kind": "identity"}, **model}
  precondition = _section(model, "precondition", "model.")
  return Denoiser(
    network=LinenNetwork(
      module=module, image_shape=source.image_shape, num_classes=num_classes
    ),
    process=GaussianProcess(schedule=_schedule(schedule, source)),
    output=output,
    conditional=num_classes > 0,
    precondition=_choose("model.precondition", PRECONDITIONS, precondition),
  )


def _schedule(fields: Fields, source: Source) -> Schedule:
  """A schedule; `shift_from` is the image size whose noise it was made for."""
  base_size = fields.pop("shift_from", None)
  base = _choose("model.schedule", SCHEDULES, fields)
  if base_size is None:
    return base
  return Shifted(
    base=base, image_size=source.image_shape[0], base_size=base_size
  )


def _classifier(fields: Fields, source: Source) -> LinenClassifier:
  module = _choose(
    "classifier", CLASSIFIERS, fields, num_classes=source.num_classes
  )
  return LinenClassifier(module=module, image_shape=source.image_shape)


def _stage(name: str, fields: Fields, given: Fields) -> Stage:
  path = f"stages.{name}"
  objective = _section(fields, "objective", f"{path}.")
  cls = OBJECTIVES.get(objective.get("kind"))
  wanted = {f.name for f in dataclasses.fields(cls)} if cls else set()
  if "classifier" in wanted and given["classifier"] is None:
    raise ValueError(
      f"{path} needs a classifier and the config has none; pass"
      " classifier.kind=resnet and its fields"
    )
  return _make(
    path,
    Stage,
    {k: v for k, v in fields.items() if k not in ("objective", "optimizer")},
    name=name,
    objective=_choose(
      f"{path}.objective",
      OBJECTIVES,
      objective,
      **{k: v for k, v in given.items() if k in wanted},
    ),
    optimizer=_make(
      f"{path}.optimizer", Optimizer, _section(fields, "optimizer", f"{path}.")
    ),
  )


def _choose(
  path: str, table: Mapping[str, type], fields: Fields, **given: Any
) -> Any:
  """An object of the class that fields["kind"] names in the table."""
  fields = dict(fields)
  kind = fields.pop("kind", None)
  if kind not in table:
    raise ValueError(f"{path}.kind is {kind!r}; pass one of {', '.join(table)}")
  return _make(path, table[kind], fields, **given)


def _make(path: str, cls: type, fields: Fields, **given: Any) -> Any:
  """An object of a dataclass, from config fields and what is given by code."""
  known = {
    f.name: f
    for f in dataclasses.fields(cls)
    if f.init and f.name not in ("parent", *given)
  }
  # A Linen module calls itself by a field `name`, which is no setting.
  known.pop("name", None)
  _refuse_unknown(f"{path}.", fields, known)
  for name, field in known.items():
    required = field.default is field.default_factory is dataclasses.MISSING
    if required and name not in fields:
      raise ValueError(f"{path}.{name} is missing; pass a value")
  hints = typing.get_type_hints(cls)
  for name, value in fields.items():
    _check_type(f"{path}.{name}", value, hints[name])
  try:
    return cls(**fields, **given)
  except (ValueError, TypeError) as error:
    # A stage's refusals say their path themselves.
    message = str(error)
    where = "" if message.startswith(path) else f"{path}: "
    raise ValueError(f"{where}{message}") from error


def _value(fields: Fields, name: str, default: Any, path: str = "") -> Any:
  """A plain field, of its default's type."""
  value = fields.get(name, default)
  _check_type(f"{path}{name}", value, type(default))
  return value


def _check_type(path: str, value: Any, hint: Any) -> None:
  if not _fits(value, hint):
    accepted = typing.get_args(hint) if _is_union(hint) else (hint,)
    names = " or ".join(
      str(kind) if typing.get_origin(kind) else kind.__name__
      for kind in accepted
    )
    raise ValueError(
      f"{path} is {value!r} of type {type(value).__name__}; pass {names}"
    )


def _fits(value: Any, hint: Any) -> bool:
  if _is_union(hint):
    return any(_fits(value, kind) for kind in typing.get_args(hint))
  kind, of = typing.get_origin(hint) or hint, typing.get_args(hint)
  if not isinstance(kind, type):
    return False
  if not isinstance(value, (int, float) if kind is float else kind):
    return False
  if isinstance(value, bool) != (kind is bool):
    return False
  if kind is tuple and of:  # tuple[int, ...]
    return all(_fits(item, of[0]) for item in value)
  if of and isinstance(value, Mapping):
    return all(_fits(item, of[1]) for item in value.values())
  return True


def _is_union(hint: Any) -> bool:
  return typing.get_origin(hint) in (typing.Union, type(int | str))


def _refuse_unknown(path: str, fields: Fields, known: Any) -> None:
  for name in fields:
    if name not in known:
      close = difflib.get_close_matches(name, known, n=1)
      remedy = f"did you mean {close[0]}?" if close else "remove it, or pass"
      if not close:
        remedy += f" one of {', '.join(sorted(known))}"
      raise ValueError(f"{path}{name} is no field; {remedy}")


def _section(fields: Fields, name: str, path: str = "") -> Fields:
  section = fields.get(name, {})
  if not isinstance(section, dict):
    raise ValueError(
      f"{path}{name} is {section!r}; pass a section with fields of its own"
    )
  return dict(section)


def _plain(value: Any) -> Any:
  """Nested dicts, and tuples for lists, of a ConfigDict or stored JSON."""
  if hasattr(value, "items"):
    return {name: _plain(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return tuple(_plain(item) for item in value)
  return value


def _flat(fields: Fields, path: str = "") -> Iterator[tuple[str, Any]]:
  for name, value in fields.items():
    if isinstance(value, dict):
      yield from _flat(value, f"{path}{name}.")
    else:
      yield f"{path}{name}", value
