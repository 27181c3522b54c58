"""The sections of a config: their fields, types, ranges and defaults.

The sections for cadence, evaluation, guidance, stages and every `kind` are
dataclasses of other rooms, which declare their fields.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

from diffdistill.data import SOURCES
from diffdistill.data.sources import Source
from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.neighbours import NEIGHBOURS, Neighbours
from diffdistill.diffusion.precondition import (
  EDMPrecondition,
  Identity,
  Precondition,
)
from diffdistill.diffusion.schedule import (
  EDM,
  Cosine,
  CosineBeta,
  LinearBeta,
  RectifiedFlow,
  Schedule,
)
from diffdistill.diffusion.timesteps import DRAWS, TimeDraw
from diffdistill.evaluation.settings import Settings
from diffdistill.fields import Fields, join
from diffdistill.fields.builder import Builder
from diffdistill.objectives import OBJECTIVES
from diffdistill.objectives.objective import Objective
from diffdistill.ranges import Range, Seed, Share
from diffdistill.run.kept_names import check_stage_name
from diffdistill.sampling import SAMPLERS
from diffdistill.sampling.sampler import Sampler
from diffdistill.training.cadence import Cadence
from diffdistill.training.pairs_stage import Pairs
from diffdistill.training.training_stage import Training
from diffdistill.training.writers import DEFAULT, check_writer

# The names that `kind` may have in a section, and the class that each means.
SCHEDULES = {
  "cosine": Cosine,
  "linear_beta": LinearBeta,
  "cosine_beta": CosineBeta,
  "edm": EDM,
  "rectified_flow": RectifiedFlow,
}
PRECONDITIONS = {"identity": Identity, "edm": EDMPrecondition}
STAGES = {"training": Training, "pairs": Pairs}
BUILDER = Builder(
  kinds={
    Source: SOURCES,
    Schedule: SCHEDULES,
    Precondition: PRECONDITIONS,
    Sampler: SAMPLERS,
    TimeDraw: DRAWS,
    Neighbours: NEIGHBOURS,
    Objective: OBJECTIVES,
  }
)
Devices = Annotated[int, Range(-1, 10**6)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSection:
  """The images of a run, and how models see them.

  Args:
    source: the source of the images.
    conditional: whether models are given the labels of the images.
    flip: whether training sees images mirrored left to right, half the time.
  """

  source: Source
  conditional: bool = False
  flip: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSection:
  """The denoiser that teacher and students share.

  Args:
    network: the architecture.
    schedule: the noise at each time; see also `ShiftSection`.
    output: what the network predicts, see diffusion/prediction.py.
    precondition: how the input and the output of the network are scaled.
    label_dropout: share of training images whose label is left out; the model
      needs it for guidance.
    dropout_bits: the generator of the random bits of dropout: "threefry2x32",
      or "rbg" or "unsafe_rbg", which are cheaper on accelerators, but depend on
      the kind and the number of devices.
    origin, license: the origin and license of an imported model, for the model
      cards of its students.
  """

  network: Fields
  schedule: Fields
  output: str = "x0"
  precondition: Precondition = dataclasses.field(default_factory=Identity)
  label_dropout: Share = 0.0
  dropout_bits: str = "threefry2x32"
  origin: str = ""
  license: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShiftSection:
  """The field of model.schedule that every kind of schedule has.

  Args:
    shift_from: the image size that the schedule was made for; 0 for any.
  """

  shift_from: Annotated[int, Range(0, 2**14)] = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSection:
  """How devices share the work; see training/sharding.py.

  Args:
    data, fsdp: the sizes of the mesh axes; -1 for one of them means all devices
      that are left.
    overrides: pairs of a regular expression and an axis, to split the
      parameters with such names along that axis.
    frozen, trained, optimizer: over what the frozen weights, the trained
      weights, and the optimizer with the moving averages are split: "none",
      "fsdp", or "all" for all devices.
  """

  data: Devices = -1
  fsdp: Devices = 1
  overrides: tuple[Any, ...] = ()
  frozen: str = "fsdp"
  trained: str = "fsdp"
  optimizer: str = "fsdp"

  def __post_init__(self):
    for override in self.overrides:
      if not (
        isinstance(override, tuple)
        and [type(part) for part in override] == [str, int]
      ):
        raise ValueError(
          f"mesh.overrides has {override!r}; pass pairs of a regular expression"
          " and an axis, such as (('conv_out/kernel', 2),)"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnSections:
  """The sections that a stage may have in place of the run's sections."""

  sampler: Sampler | None = None
  guidance: Guidance | None = None
  classifier: Fields | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """A whole config.

  Sections of type `Fields` are built later: a sampler needs the model's process
  first, and a network needs the shape of the images.

  Args:
    run: the names of the stages that are run, in order.
    stages: the fields of each stage, by stage name; see training/stage.py.
    data, model, mesh: sections of this file.
    sampler: how noise becomes an image.
    guidance: the guidance of the teacher.
    classifier: the classifier that judges or teaches; None for no classifier.
    cadence: how often a run logs, saves and shows its samples.
    evaluation: how models are judged.
    seed: the seed of all random numbers.
    minutes: the minutes of the whole run; each stage's `minutes` is a share of
      it. Infinite if stages end after a number of updates.
    writer: the writer that gets the metrics too; see training/writers.py.
  """

  run: tuple[str, ...] = ()
  stages: Mapping[str, Fields]
  data: DataSection
  model: ModelSection
  sampler: Fields
  guidance: Guidance
  classifier: Fields | None = None
  mesh: MeshSection
  cadence: Cadence
  evaluation: Settings
  seed: Seed = 0
  minutes: Annotated[float, Range(0, 10**6, "least")] = math.inf
  writer: str = DEFAULT

  def __post_init__(self):
    check_writer(self.writer)

  @property
  def ends_by_the_clock(self) -> bool:
    return math.isfinite(self.minutes)


def raw_section(fields: Fields, name: str, path: str = "") -> Fields:
  """A section as plain fields, not built; empty if it is missing.

  Args:
    fields: the fields of the section around it.
    name: the name of the section.
    path: the path of the section around it.

  Raises:
    ValueError: if the value is no section.
  """
  return BUILDER.build(join(path, name), Fields, fields.get(name, {}))


def stages_of_run(config: Fields) -> dict[str, Fields]:
  """The plain fields of each stage that `run` names, in the order of the run.

  Args:
    config: the fields of the whole config.

  Raises:
    ValueError: if `run` names no stage, a stage twice, an unknown stage, or a
      stage whose name cannot be the name of a folder.
  """
  run = BUILDER.build("run", tuple[str, ...], config.get("run", ()))
  stages = raw_section(config, "stages")
  if not run:
    raise ValueError(
      f"run is {run!r}; pass a tuple of some of {', '.join(stages)}"
    )
  for name in run:
    if run.count(name) > 1:
      raise ValueError(f"run names the stage {name!r} twice; pass it once")
    if name not in stages:
      raise ValueError(
        f"run names the stage {name!r}; pass some of {', '.join(stages)}"
      )
    check_stage_name(name)
  return {name: raw_section(stages, name, "stages") for name in run}
