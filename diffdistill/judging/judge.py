"""The judge of a run: a feature network, with the statistics of the data."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from diffdistill.arrays import Params
from diffdistill.data.pipeline import images_once
from diffdistill.evaluation.features import (
  Classifier,
  FeatureFn,
  Features,
  Reference,
  classifier_features,
  reference_statistics,
)
from diffdistill.evaluation.metrics import distance_of_halves
from diffdistill.evaluation.trust import Trust
from diffdistill.interop.torch_inception import SHA256, load_inception
from diffdistill.judging.held_out import check_classes, measure
from diffdistill.judging.judged_rows import FOLDER
from diffdistill.judging.kept_reference import kept_reference
from diffdistill.judging.references import (
  load_reference,
  require_enough_images,
)
from diffdistill.networks.inception import FEATURES, RESIZER, inception
from diffdistill.run.experiment import Experiment
from diffdistill.system import hosts
from diffdistill.system.files import digest_of
from diffdistill.training.fingerprint import fingerprint
from diffdistill.training.stage import Stage

FID = "FID"
DETECTOR = "Inception-v3 of 2015-12-05"


def nothing() -> None:
  """The default of `between`: does nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
  """A feature network that judges images, with the statistics of the data.

  Args:
    metric: the name of the Frechet distance, such as FD-classifier.
    kernel: the name of the kernel distance; empty for none.
    features: the feature network.
    reference: the statistics of the training data, by the same network.
    said: facts about the network and the data, by name, for an evaluation.
    identity: a text that names the judge; see `identity_of`.
    trust: measures the accuracy of the network if it is a classifier of the
      run; see evaluation/trust.py.
    between: called before each batch of features and between batches that are
      only timed; it may raise to stop the evaluation.
  """

  metric: str
  features: FeatureFn
  reference: Reference
  said: Mapping[str, str]
  identity: str
  kernel: str = ""
  trust: Callable[[], Trust] | None = None
  between: Callable[[], None] = nothing

  def check(self, num_images: int) -> None:
    """Refuses to measure FID with too few images.

    Raises:
      ValueError: if there are not more images than features.
    """
    if self.metric == FID:
      require_enough_images(self.reference, num_images)

  def require_trust(self, stage: str) -> None:
    """Refuses to select weights by a judge that is not better than chance.

    Args:
      stage: the name of the stage that selects by distance.

    Raises:
      ValueError: if the judge is not trusted; the message says why and what
        helps.
    """
    trust = None if self.trust is None else self.trust()
    if trust is not None and not trust.trusted:
      raise ValueError(
        f"stages.{stage}.select.by is 'distance', but its judge is"
        f" {trust.verdict}; train the classifier longer, in a new workdir, or"
        f" pass stages.{stage}.select.every=0, or evaluation.inception"
      )

  def facts(self) -> dict[str, Any]:
    """The facts about the judge that an evaluation states."""
    facts: dict[str, Any] = {"metric": self.metric, **self.said}
    if self.trust is not None:
      facts |= self.trust().facts
    pooled = self.reference.pooled
    if pooled is not None:
      half = len(pooled) // 2
      name = f"{self.metric} of two samples of {half} real images"
      facts[name] = distance_of_halves(pooled)
    return facts


def judge_of(
  run: Experiment,
  workdir: epath.Path,
  between: Callable[[], None] = nothing,
  say: Callable[[str], None] = lambda line: None,
) -> Judge:
  """The judge of a run: Inception, or the run's own classifier.

  Statistics of the run's own data are computed once and kept in the workdir.

  Args:
    run: the recipe; its `evaluation` may name Inception's weights.
    workdir: the folder where the run was trained.
    between: called before each batch of features; it may raise to stop.
    say: receives one line for each damaged file.

  Raises:
    ValueError: if the run has no trained classifier, or if the file of
      Inception's weights or of the reference does not fit.
  """
  settings = run.evaluation
  identity = identity_of(run, workdir)
  network = _inception(run) if settings.inception else _own(run, workdir)
  features = _features(run, network, between)
  reference, said = _reference(run, workdir, network, identity, features, say)
  stage, trust = network.stage, None
  if stage is not None:
    trust = functools.cache(lambda: measure(run, stage, features))
  return Judge(
    metric=network.metric,
    kernel=network.kernel,
    features=features,
    reference=reference,
    said={**network.said, "reference": said},
    identity=identity,
    trust=trust,
    between=between,
  )


def trust_of(
  run: Experiment,
  workdir: epath.Path,
  between: Callable[[], None] = nothing,
) -> Trust:
  """Measures the run's own classifier, without statistics of the data.

  Args:
    run: the recipe.
    workdir: the folder where the classifier was trained.
    between: called before each batch of features; it may raise to stop.
  """
  network = _own(run, workdir)
  assert network.stage is not None
  return measure(run, network.stage, _features(run, network, between))


def identity_of(run: Experiment, workdir: epath.Path) -> str:
  """A text that names the judge of a run: metric, network, weights and data.

  Raises:
    ValueError: if the run has no classifier, or has not trained it yet.
  """
  if run.evaluation.inception:
    if run.evaluation.reference:
      read = epath.Path(run.evaluation.reference).read_bytes()
      data = hashlib.sha256(read).hexdigest()
    else:
      data = _data(run)
    return f"{FID}: {DETECTOR} {SHA256} of {data}"
  name = _classifier_stage(run, workdir).name
  weights = fingerprint(run.product(workdir, name))
  return f"FD-{name}: {weights} of {_data(run)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Network:
  """A feature network with its weights.

  Args:
    detector: the name of the network.
    classifier, params: the network and its weights; see `classifier_features`.
    metric, kernel, said: fields of the same names in `Judge`.
    file: the name of the file that keeps the statistics of the run's data.
    stage: the stage that trained the network; None for Inception.
  """

  detector: str
  classifier: Classifier
  params: Params
  metric: str
  kernel: str = ""
  said: Mapping[str, str]
  file: str
  stage: Stage | None = None


def _features(
  run: Experiment, network: _Network, between: Callable[[], None]
) -> FeatureFn:
  """The features of a network; calls `between` before each batch."""
  compiled = classifier_features(
    network.classifier,
    network.params,
    run.mesh,
    batch_size=run.evaluation.batch_size,
  )

  def features(images: np.ndarray | jax.Array) -> Features:
    between()
    return compiled(images)

  return features


def _reference(
  run: Experiment,
  workdir: epath.Path,
  network: _Network,
  identity: str,
  features: FeatureFn,
  say: Callable[[str], None],
) -> tuple[Reference, str]:
  """The statistics of the data, and a text that names the data."""
  settings, shape = run.evaluation, run.source.image_shape
  if settings.reference:
    reference = load_reference(
      settings.reference,
      detector=network.detector,
      dim=FEATURES,
      image_shape=shape,
      features=features,
    )
    said = settings.reference
    if not reference.stated:
      said += ", which does not say how its network resized images"
    return reference, said
  reference = kept_reference(
    workdir / FOLDER / network.file,
    identity,
    lambda: reference_statistics(
      images_once(run.source, settings.batch_size),
      features,
    ),
    detector=network.detector,
    image_shape=shape,
    features=features,
    say=say,
  )
  return reference, f"{len(run.source)} training images"


def _inception(run: Experiment) -> _Network:
  """Reads Inception, the feature network of FID and KID, from its file."""
  everywhere = NamedSharding(run.mesh, PartitionSpec())
  return _Network(
    detector=DETECTOR,
    classifier=inception(run.source.image_shape),
    params=jax.tree.map(
      lambda leaf: hosts.place(leaf, everywhere),
      load_inception(run.evaluation.inception),
    ),
    metric=FID,
    kernel="KID",
    said={
      "detector": f"{DETECTOR}, weights of SHA-256 {SHA256}",
      "resizer": RESIZER,
    },
    file="inception_reference.npz",
  )


def _own(run: Experiment, workdir: epath.Path) -> _Network:
  """Loads the run's own classifier as a feature network in float32."""
  stage = _classifier_stage(run, workdir)
  classifier = stage.classifier
  if hasattr(classifier.module, "dtype"):
    module = classifier.module.clone(dtype="float32")
    classifier = dataclasses.replace(classifier, module=module)
  return _Network(
    detector=stage.name,
    classifier=classifier,
    params=run.product(workdir, stage.name),
    metric=f"FD-{stage.name}",
    said={"detector": f"the run's own {stage.name}: no FID"},
    file="reference.npz",
    stage=stage,
  )


def _classifier_stage(run: Experiment, workdir: epath.Path) -> Stage:
  stage = run.judging_stage
  if stage is None:
    raise ValueError(
      f"the run in {workdir} has no classifier stage, whose features judge"
      " images; add one at the end of config.run and train again, or pass"
      " --inception"
    )
  check_classes(run, stage)
  return stage


def _data(run: Experiment) -> str:
  """A short name of the training images, from their digests."""
  size, digests = len(run.source), run.source.digests()
  return f"{size} images {digest_of([run.source.image_shape, digests])}"
