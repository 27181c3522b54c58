"""Holds the objects, built from a recipe, that every command needs."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Int

from diffdistill.arrays import Condition, Image, Key, Label, Params
from diffdistill.data.apart import set_apart
from diffdistill.data.label_order import RULE
from diffdistill.data.pipeline import Pipeline
from diffdistill.data.sources import Source
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.guidance import Guidance, Told, told_in
from diffdistill.evaluation.generator import Generator, Predict, Sample
from diffdistill.evaluation.settings import Settings
from diffdistill.fields import Fields
from diffdistill.networks.classifier import LinenClassifier
from diffdistill.sampling.sampler import Sampler
from diffdistill.system.files import digest_of
from diffdistill.training import checkpoint, unfinished
from diffdistill.training.cadence import Cadence
from diffdistill.training.curriculum import curriculum, judging_stage
from diffdistill.training.sharding import Layout, process_rows
from diffdistill.training.stage import Round, Stage
from diffdistill.training.training_stage import Training, trainings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """The parts of a recipe, and the objects that are made from them.

  `chosen` has lines about the fields that said "auto", and why. `old` has the
  old rounds that were trained again (redone.py); `config` has their stages too.
  """

  config: Fields
  seed: int
  stages: tuple[Stage, ...]
  source: Source
  flip: bool
  denoiser: Denoiser
  classifier: LinenClassifier | None
  guidance: Guidance
  layout: Layout
  cadence: Cadence
  evaluation: Settings
  writer: str
  chosen: tuple[str, ...] = ()
  old: tuple[tuple[Stage, Round], ...] = ()

  @functools.cached_property
  def rounds(self) -> dict[str, tuple[Stage, Round]]:
    """The stage and the round of each round name, in the order of the run.

    The old rounds that were trained again come last.
    """
    rounds = (*curriculum(self.stages), *self.old)
    return {round_.name: (stage, round_) for stage, round_ in rounds}

  @functools.cached_property
  def models(self) -> dict[str, tuple[Training, Round]]:
    """The stage and the round of each round that makes a model of images."""
    stages = trainings(stage for stage, _ in self.rounds.values())
    return {
      name: (stages[stage.name], round_)
      for name, (stage, round_) in self.rounds.items()
      if stage.makes == "denoiser"
    }

  @property
  def mesh(self) -> Mesh:
    return self.layout.mesh

  @property
  def devices(self) -> str:
    """The number and kind of devices, such as "8 TPU v5 lite"."""
    return f"{jax.device_count()} {jax.devices()[0].device_kind}"

  @property
  def num_classes(self) -> int:
    """The number of classes that the denoiser is given; 0 for none."""
    return self.source.num_classes if self.denoiser.conditional else 0

  @property
  def label_rule(self) -> str:
    """The rule that chooses the classes of generated images; "" for no classes.

    The rule names the class counts by a digest, since there may be thousands.
    """
    if not self.num_classes:
      return ""
    return f"{RULE} (class counts {digest_of(self.source.label_counts)})"

  def lineage(self, name: str, *, students: bool = False) -> Iterator[str]:
    """The rounds that lead to a model: first the teacher's, last its own.

    Args:
      name: the name of the model's round.
      students: whether to leave out the teacher's round.
    """
    stage, round_ = self.rounds[name]
    teacher = round_.frozen.get("teacher", "")
    if teacher in self.rounds and (
      self.rounds[teacher][1].num_steps or not students
    ):
      yield from self.lineage(teacher, students=students)
    if stage.pairs:
      yield stage.pairs
    yield name

  def usual_steps(self, round_: Round) -> int:
    """A student's first number of steps; a teacher's most evaluated steps."""
    return round_.num_steps or max(self.evaluation.num_steps)

  def usual_guidance(self, round_: Round) -> Guidance | Told | None:
    """The guidance of a model; None for a student whose weights hold it.

    A student that is told a guidance weight is told the config's weight.
    """
    if self.rounds[round_.name][0].told:
      return self.guidance_at(round_, self.guidance.weight)
    return None if round_.num_steps else self.guidance

  def guidance_at(self, round_: Round, weight: float) -> Guidance | Told:
    """The guidance of a model with a given weight.

    Raises:
      ValueError: if the model is told a weight, but has not learned this one.
    """
    told = self.rounds[round_.name][0].told
    if not told:
      return dataclasses.replace(self.guidance, weight=weight)
    return told_in(told, weight, round_.name)

  @property
  def judging_stage(self) -> Stage | None:
    """The first stage that trains a classifier, which is the judge; or None."""
    return judging_stage(self.stages)

  @functools.cached_property
  def judged_on(self) -> tuple[Source, Source]:
    """The images that the judging stage trains on, and those that test it.

    They are the training images and the test images, if there is a test split;
    otherwise two parts of the training images, see `set_apart`.
    """
    test = self.source.held_out()
    return set_apart(self.source) if test is None else (self.source, test)

  def batches(self, batch_size: int, seed: int, stage: str = "") -> Pipeline:
    """The training batches: this process's rows of each.

    Args:
      batch_size: the number of images of all processes together.
      seed: the seed of the order of images.
      stage: the name of the stage that trains on the images. The judging stage
        may not see all images, see `judged_on`.
    """
    judging = self.judging_stage
    judges = judging is not None and judging.name == stage
    return Pipeline(
      source=self.judged_on[0] if judges else self.source,
      batch_size=batch_size,
      seed=seed,
      flip=self.flip,
      rows=process_rows(batch_size, self.mesh),
    )

  def generator(
    self,
    sampler: Sampler,
    batch_size: int,
    label: int | None = None,
    guidance: Guidance | Told | None = None,
    *,
    half: bool = False,
  ) -> Generator:
    """A generator of images, for any weights of this experiment's denoiser.

    Args:
      sampler: how noise becomes an image.
      batch_size: images made at a time.
      label: the class of all images; by default classes are as frequent as in
        the data.
      guidance: the guidance of the model, or the weight that it is told; by
        default there is none.
      half: whether the noise is rounded to float16, as pairs hold it.

    Raises:
      ValueError: if the model cannot be guided and `guidance` has a weight.
    """
    if isinstance(guidance, Guidance) and guidance.weight > 0:
      self.denoiser.check_guidance(guidance)

    return Generator(
      sample=sample_of(self.denoiser, sampler, guidance),
      predict=predict_of(self.denoiser, sampler, guidance),
      image_shape=self.source.image_shape,
      num_classes=self.num_classes,
      label_counts=lambda: self.source.label_counts,
      label=label,
      half=half,
      mesh=self.mesh,
      batch_size=batch_size,
    )

  def product(
    self, workdir: epath.Path, round_name: str, *, last: bool = False
  ) -> Params:
    """Loads the weights that a finished round made.

    Args:
      workdir: the workdir of the run.
      round_name: the name of the round.
      last: whether to load the weights of the round's end, for a round that
        hands on its best weights instead.
    """
    stage, _ = self.rounds[round_name]
    name = f"last_{stage.product}" if last else stage.product
    return checkpoint.load_final(workdir / round_name, name, self.layout)

  def product_so_far(
    self, workdir: epath.Path, round_name: str, step: int
  ) -> Params:
    """Loads the weights of an unfinished round from a checkpoint."""
    stage, _ = self.models[round_name]
    return unfinished.load_product(
      workdir / round_name, step, stage.objective, self.layout
    )


def sample_of(
  denoiser: Denoiser,
  sampler: Sampler,
  guidance: Guidance | Told | None = None,
) -> Sample:
  """The function from weights and noise to images that `Generator` needs."""

  def sample(
    params: Params,
    noise: Image,
    label: Label | None,
    key: Key,
    num_steps: Int[Array, ""],
  ) -> Image:
    x = sampler.start(noise, num_steps)
    model = denoiser.bind(params, Condition(label=label), guidance)
    return sampler(model, x, key, num_steps)

  return sample


def predict_of(
  denoiser: Denoiser,
  sampler: Sampler,
  guidance: Guidance | Told | None = None,
) -> Predict:
  """The function that predicts images during sampling, for `Generator`."""

  def predict(
    params: Params,
    noise: Image,
    label: Label | None,
    key: Key,
    num_steps: Int[Array, ""],
    done: Int[Array, ""],
  ) -> Image:
    x = sampler.start(noise, num_steps)
    model = denoiser.bind(params, Condition(label=label), guidance)
    return sampler.predicted(model, x, key, num_steps, done)

  return predict
