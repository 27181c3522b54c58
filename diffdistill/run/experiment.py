"""A recipe, built: everything a command needs, nothing started yet."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Int

from diffdistill.arrays import Image, Key, Label, Params
from diffdistill.data.apart import set_apart
from diffdistill.data.label_order import RULE
from diffdistill.data.pairs import PairSet, PairStore
from diffdistill.data.pipeline import Pipeline
from diffdistill.data.sources import Source
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.guidance import Guidance
from diffdistill.evaluation.comparison import Settings
from diffdistill.evaluation.evaluator import Generator, Sample
from diffdistill.fields import Fields, plain
from diffdistill.images import to_host
from diffdistill.interop import model_folder
from diffdistill.interop.model import Model, misfits
from diffdistill.interop.torch_resnet import load_resnet
from diffdistill.networks.classifier import LinenClassifier
from diffdistill.run.workdir import stored_config
from diffdistill.sampling.sampler import Sampler
from diffdistill.system import hosts
from diffdistill.system.files import digest_of
from diffdistill.training import checkpoint
from diffdistill.training.cadence import Cadence
from diffdistill.training.curriculum import curriculum
from diffdistill.training.fingerprint import fingerprint
from diffdistill.training.sharding import (
  Layout,
  process_rows,
  tree_shardings,
)
from diffdistill.training.stage import Pairs, Round, Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """The parts of a recipe, and what is made of them."""

  config: Fields
  seed: int
  stages: tuple[Stage | Pairs, ...]
  source: Source
  flip: bool
  denoiser: Denoiser
  classifier: LinenClassifier | None
  guidance: Guidance
  layout: Layout
  cadence: Cadence
  evaluation: Settings

  @functools.cached_property
  def rounds(self) -> dict[str, tuple[Stage | Pairs, Round]]:
    """Every round by name, in order."""
    return {r.name: (stage, r) for stage, r in curriculum(self.stages)}

  @property
  def mesh(self) -> Mesh:
    return self.layout.mesh

  @property
  def devices(self) -> str:
    """How many of what."""
    return f"{jax.device_count()} {jax.devices()[0].device_kind}"

  @property
  def num_classes(self) -> int:
    """That the denoiser is told; 0 where it is told none."""
    return self.source.num_classes if self.denoiser.conditional else 0

  @property
  def label_rule(self) -> str:
    """How classes of generated images are chosen; empty where there are none.

    It names the class counts by their digest, since there may be thousands.
    """
    if not self.num_classes:
      return ""
    return f"{RULE} (class counts {digest_of(self.source.label_counts)})"

  def lineage(self, name: str, *, students: bool = False) -> Iterator[str]:
    """The rounds that a model is made by, the teacher first, itself last.

    Args:
      name: of its round.
      students: from the teacher's first student on.
    """
    stage, round_ = self.rounds[name]
    teacher = round_.frozen.get("teacher", "")
    if teacher in self.rounds and (
      self.rounds[teacher][1].num_steps or not students
    ):
      yield from self.lineage(teacher, students=students)
    if isinstance(stage, Stage) and stage.pairs:
      yield stage.pairs
    yield name

  def usual_steps(self, round_: Round) -> int:
    """Of a student, those it was made for; of a teacher, its best."""
    return round_.num_steps or max(self.evaluation.num_steps)

  def usual_guidance(self, round_: Round) -> Guidance | None:
    """A teacher's; a student has its teacher's in its weights."""
    return None if round_.num_steps else self.guidance

  @property
  def judging_stage(self) -> Stage | None:
    """The first stage that makes a classifier, which judges; None if none."""
    for stage in self.stages:
      if isinstance(stage, Stage) and stage.objective.trains[0] == "classifier":
        return stage
    return None

  @functools.cached_property
  def judged_on(self) -> tuple[Source, Source]:
    """What the judging stage trains on, and what its accuracy is measured on.

    Those are the training and the test images, where there is a test split;
    otherwise two parts of the training images, see `set_apart`.
    """
    test = self.source.held_out()
    return set_apart(self.source) if test is None else (self.source, test)

  def batches(self, batch_size: int, seed: int, stage: str = "") -> Pipeline:
    """This process's rows of the training data.

    Args:
      batch_size: of all processes together.
      seed: of their order.
      stage: the name of the stage that trains on them: the judging stage may
        not see all images, see `judged_on`.
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
    guidance: Guidance | None = None,
    *,
    half: bool = False,
  ) -> Generator:
    """Images of any weights of this experiment's denoiser.

    Args:
      sampler: from noise to image.
      batch_size: images made at a time.
      label: the class of all; by default classes are as frequent as in the
        data.
      guidance: of the model; none by default.
      half: whether the noise is in float16, as pairs hold it.

    Raises:
      ValueError: for guidance of a model that cannot be guided.
    """
    if guidance is not None and guidance.weight > 0:
      self.denoiser.check_guidance(guidance)

    return Generator(
      sample=sample_of(self.denoiser, sampler, guidance),
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
    """The weights that a finished round made.

    Args:
      workdir: of the run.
      round_name: of the round.
      last: those at its end, of a round whose product is its best.
    """
    stage, _ = self.rounds[round_name]
    assert isinstance(stage, Stage)
    name = stage.objective.trains[0]
    if last:
      name = f"last_{name}"
    return checkpoint.load_final(workdir / round_name, name, self.layout)

  def pairs(
    self, workdir: epath.Path, stage: Pairs, round_: Round, teacher: Params
  ) -> PairStore:
    """The pairs of a stage on disk, and how its teacher makes them."""
    guidance = stage.guidance if round_.guided else None
    generator = self.generator(
      stage.sampler, stage.batch_size, guidance=guidance, half=True
    )
    # Not the run's own seed, whose noise students are judged on.
    seed = self.seed ^ round_.code

    def noise(first: int, count: int) -> np.ndarray:
      parts = [
        to_host(generator.noise(seed, start))
        for start in range(first, first + count, generator.batch_size)
      ]
      return np.concatenate(parts)[:count].astype(np.float32)

    def draw(
      first: int, count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
      images = np.concatenate(
        [
          to_host(batch)
          for batch in generator.batches(
            teacher, seed, count, stage.num_steps, first
          )
        ]
      )
      labels = generator.labels_of(first, count)
      return noise(first, count), images, labels

    pairs = self._pair_set(stage, seed, fingerprint(teacher))
    return PairStore(
      directory=(
        epath.Path(stage.path) if stage.path else workdir / stage.name / "pairs"
      ),
      pairs=pairs,
      max_gigabytes=stage.max_gigabytes,
      draw=draw,
      draw_size=generator.batch_size,
      noise=noise,
    )

  def check_disk(self, stage: Pairs) -> None:
    """Refuses a disk budget that not one shard fits in.

    Raises:
      ValueError: where that is so.
    """
    self._pair_set(stage, 0, "").capacity(stage.max_gigabytes)

  def _pair_set(self, stage: Pairs, seed: int, teacher: str) -> PairSet:
    return PairSet(
      teacher=teacher,
      sampler=f"{stage.sampler} {stage.guidance}",
      num_steps=stage.num_steps,
      seed=seed,
      image_shape=self.source.image_shape,
      num_classes=self.num_classes,
      labels=self.label_rule,
      num_pairs=stage.num_pairs,
      held_out=stage.held_out,
      shard_size=stage.shard_size,
      store_noise=stage.store_noise,
    )

  def outside(self, stage: Stage | Pairs, name: str, source: str) -> Params:
    """Weights that are not of this run.

    Args:
      stage: that needs them.
      name: what they are to it: "teacher", "classifier", ...
      source: "path:DIR", a finished round of another run; or "imported:PATH",
        a folder that `diffdistill import` wrote, or a classifier's file.

    Raises:
      ValueError: where there are none, or they do not fit this run's networks.
    """
    kind, _, place = source.partition(":")
    path = epath.Path(place)
    if kind == "imported":
      if name == "classifier":
        assert isinstance(stage, Stage)
        params = load_resnet(path, classifier_of(stage))
      else:
        model = model_folder.load(path)
        self._check_imported(stage, name, model)
        params = model.params
      params = jax.tree.map(
        hosts.place, params, tree_shardings(params, self.layout)
      )
    else:
      product = name
      if name == "teacher" and checkpoint.has_final(path):
        names = checkpoint.product_names(path)
        product = "teacher" if "teacher" in names else "student"
      params = checkpoint.load_final(path, product, self.layout)
      self._check_model(stage, name, path)
    network: Any = self.denoiser.network
    if name == "classifier":
      assert isinstance(stage, Stage)
      network = classifier_of(stage)
    wanted = jax.eval_shape(network.init, jax.random.key(0))
    for where, ours, theirs in misfits(wanted, params):
      raise ValueError(
        f"{_field(stage, name)} is {source!r}, whose weights do not fit:"
        f" {where} is {theirs} there and {ours} here; pass the config it was"
        " made with"
      )
    return params

  def _check_imported(
    self, stage: Stage | Pairs, name: str, model: Model
  ) -> None:
    """Refuses a model of other images or classes than this run's data has.

    And one that means something else than this run's model does, or was made
    for a number of steps.
    """
    field = _field(stage, name)
    for what, theirs, ours in (
      ("images of", model.image_shape, self.source.image_shape),
      ("classes:", model.num_classes, self.num_classes),
    ):
      if theirs != ours:
        raise ValueError(
          f"{field} is a model with {what} {theirs}, but the data has {what}"
          f" {ours}; pass a data source that fits it"
        )
    if model.num_steps:
      raise ValueError(
        f"{field} is a student of {model.num_steps} steps, which knows no other"
        " times; pass a teacher"
      )
    own = plain(self.config["model"])
    for what in ("schedule", "output", "precondition"):
      if getattr(model, what) != own[what]:
        raise ValueError(
          f"{field} is a model whose {what} is {getattr(model, what)}, but the"
          f" run's is {own[what]}; import one teacher a run"
        )

  def _check_model(
    self, stage: Stage | Pairs, name: str, round_dir: epath.Path
  ) -> None:
    """Refuses denoiser weights that mean something else than this run's do."""
    for folder in (round_dir.parent, round_dir.parent.parent):
      if name == "classifier" or not (folder / "config.json").exists():
        continue
      theirs, ours = stored_config(folder)["model"], self.config["model"]
      for field in ("schedule", "output", "precondition"):
        if theirs.get(field) != ours.get(field):
          raise ValueError(
            f"{_field(stage, name)} is of a run whose model.{field} is"
            f" {theirs.get(field)}, not {ours.get(field)}; pass the same"
          )


def sample_of(
  denoiser: Denoiser, sampler: Sampler, guidance: Guidance | None = None
) -> Sample:
  """From weights and unit noise to images, as generators take it."""

  def sample(
    params: Params,
    noise: Image,
    label: Label | None,
    key: Key,
    num_steps: Int[Array, ""],
  ) -> Image:
    x = sampler.start(noise, num_steps)
    return sampler(denoiser.bind(params, label, guidance), x, key, num_steps)

  return sample


def _field(stage: Stage | Pairs, name: str) -> str:
  """The config's field that says where a stage has outside weights from."""
  given = isinstance(stage, Stage) and stage.source
  return f"stages.{stage.name}.{'source' if given else f'frozen.{name}'}"


def classifier_of(stage: Stage) -> Any:
  """The classifier that a stage's objective trains or is given."""
  return getattr(stage.objective, "classifier")  # noqa: B009
