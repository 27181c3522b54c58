"""config -> Experiment: the only file that reads a ConfigDict.

The keys of a sub-dict are the fields of the dataclass that it builds, and its
`kind` names which; a key that is no field is refused.
"""

import dataclasses
import functools
import json
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Int

from diffdistill.arrays import Image, Key, Label, Params
from diffdistill.config_fields import (
  Fields,
  choose,
  make,
  plain,
  read,
  refuse_unknown,
  section,
)
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
from diffdistill.networks import CLASSIFIERS, NETWORKS
from diffdistill.networks.classifier import LinenClassifier
from diffdistill.networks.network import LinenNetwork, Network
from diffdistill.objectives import OBJECTIVES
from diffdistill.sampling import SAMPLERS
from diffdistill.sampling.sampler import Sampler
from diffdistill.training import checkpoint
from diffdistill.training.curriculum import Round, Stage, curriculum
from diffdistill.training.optimizers import Optimizer
from diffdistill.training.sharding import make_mesh
from diffdistill.training.trainer import Cadence
from diffdistill.workdir import stored_config

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


def reopen(workdir: epath.Path) -> Experiment:
  """The experiment of a workdir, on the devices that are here.

  Raises:
    ValueError: where no run has begun there, or its config is damaged.
  """
  return build({**stored_config(workdir), "mesh": {}})


def build(config: Any) -> Experiment:
  """The experiment that a config describes.

  Args:
    config: a ConfigDict, or plain values as `stored_config` gives them.

  Raises:
    ValueError: for an unknown or missing field, a wrong type or a value out of
      range; one line, with the field's path.
  """
  fields = plain(config)
  if not isinstance(fields, dict):
    raise ValueError(f"the config is {fields!r}; return a ConfigDict of fields")
  refuse_unknown("", fields, SECTIONS)
  data = section(fields, "data")
  refuse_unknown("data.", data, ("source", "conditional", "flip"))
  conditional = read(data, "conditional", False, path="data.")
  flip = read(data, "flip", False, path="data.")
  seed = read(fields, "seed", 0)
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed is {seed}; pass 0 to 2**32 - 1")
  source = choose("data.source", SOURCES, section(data, "source", "data."))
  model = section(fields, "model")
  denoiser = _denoiser(model, source, source.num_classes if conditional else 0)
  sampler = choose(
    "sampler",
    SAMPLERS,
    section(fields, "sampler"),
    process=denoiser.process,
  )
  classifier = None
  if "classifier" in fields:
    classifier = _classifier(section(fields, "classifier"), source)
  given = {"denoiser": denoiser, "sampler": sampler, "classifier": classifier}
  _trace("model.network", denoiser.network)
  if classifier is not None:
    _trace("classifier", classifier)
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
    mesh=_mesh(section(fields, "mesh")),
    cadence=make("cadence", Cadence, section(fields, "cadence")),
    evaluation=make("evaluation", Settings, section(fields, "evaluation")),
  )


def _trace(path: str, network: Network | LinenClassifier) -> None:
  """Meets a network that does not fit its images before anything is trained."""
  try:
    jax.eval_shape(network.init, jax.random.key(0))
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


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
  return {name: section(stages, name, "stages.") for name in run}


def _mesh(fields: Fields) -> Mesh:
  refuse_unknown("mesh.", fields, ("data", "fsdp"))
  return make_mesh(
    data=read(fields, "data", -1, path="mesh."),
    fsdp=read(fields, "fsdp", 1, path="mesh."),
  )


def _denoiser(model: Fields, source: Source, num_classes: int) -> Denoiser:
  refuse_unknown(
    "model.", model, ("network", "schedule", "output", "precondition")
  )
  output = read(model, "output", "x0", path="model.")
  channels = source.image_shape[-1]
  module = choose(
    "model.network",
    NETWORKS,
    section(model, "network", "model."),
    out_channels=output_channels(output, channels),
    num_classes=num_classes,
  )
  schedule = section(model, "schedule", "model.")
  model = {"precondition": {"kind": "identity"}, **model}
  precondition = section(model, "precondition", "model.")
  return Denoiser(
    network=LinenNetwork(
      module=module, image_shape=source.image_shape, num_classes=num_classes
    ),
    process=GaussianProcess(schedule=_schedule(schedule, source)),
    output=output,
    conditional=num_classes > 0,
    precondition=choose("model.precondition", PRECONDITIONS, precondition),
  )


def _schedule(fields: Fields, source: Source) -> Schedule:
  """A schedule; `shift_from` is the image size whose noise it was made for."""
  base_size = read(fields, "shift_from", 0, path="model.schedule.")
  fields.pop("shift_from", None)
  base = choose("model.schedule", SCHEDULES, fields)
  if not base_size:
    return base
  return Shifted(
    base=base, image_size=source.image_shape[0], base_size=base_size
  )


def _classifier(fields: Fields, source: Source) -> LinenClassifier:
  module = choose(
    "classifier", CLASSIFIERS, fields, num_classes=source.num_classes
  )
  return LinenClassifier(module=module, image_shape=source.image_shape)


def _stage(name: str, fields: Fields, given: Fields) -> Stage:
  path = f"stages.{name}"
  fields = dict(fields)
  objective = section(fields, "objective", f"{path}.")
  optimizer = section(fields, "optimizer", f"{path}.")
  if "sampler" in fields:
    own = section(fields, "sampler", f"{path}.")
    process = given["denoiser"].process
    sampler = choose(f"{path}.sampler", SAMPLERS, own, process=process)
    given = {**given, "sampler": sampler}
  for part in ("objective", "optimizer", "sampler"):
    fields.pop(part, None)
  cls = OBJECTIVES.get(str(objective.get("kind")))
  wanted = {f.name for f in dataclasses.fields(cls)} if cls else set()
  if "classifier" in wanted and given["classifier"] is None:
    raise ValueError(
      f"{path} needs a classifier and the config has none; pass"
      " classifier.kind=resnet and its fields"
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
  )
