"""The judge of a run: a feature network, and the data as it sees it."""

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
from diffdistill.data.pipeline import once
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
  """What is called between batches where nobody may have to leave."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
  """A feature network that judges images, and the data as the network sees it.

  Args:
    metric: the name of the Frechet distance, such as FD-classifier.
    kernel: the name of the kernel distance; empty where there is none.
    features: the feature network.
    reference: the statistics of the training data, by the same network.
    said: what an evaluation says of the network and of the data, by name.
    identity: see `identity_of`.
    trust: measures how right the network is, where it is a classifier of the
      run; see evaluation/trust.py.
    between: called before `features` looks at a batch, and between batches that
      are generated but not looked at; may raise, to leave.
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
    """Refuses a FID of too few images.

    Raises:
      ValueError: where there are not more images than features.
    """
    if self.metric == FID:
      require_enough_images(self.reference, num_images)

  def require_trust(self, stage: str) -> None:
    """Refuses to select weights by a judge that is no better than chance.

    Args:
      stage: the name of the stage that selects by distance.

    Raises:
      ValueError: with what the judge can do, and what helps.
    """
    trust = None if self.trust is None else self.trust()
    if trust is not None and not trust.trusted:
      raise ValueError(
        f"stages.{stage}.select.by is 'distance', and its judge is"
        f" {trust.verdict}; train the classifier longer, in a new workdir, or"
        f" pass stages.{stage}.select.every=0, or evaluation.inception"
      )

  def facts(self) -> dict[str, Any]:
    """What a reader of the evaluation must know of the judge."""
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

  Statistics of the run's own data are made once, and kept in the workdir.

  Args:
    run: the recipe, whose `evaluation` may name Inception's weights.
    workdir: where the run was trained.
    between: called before each batch that the judge looks at; may raise.
    say: told which kept files are damaged.

  Raises:
    ValueError: where the run has no classifier, or has not trained it yet; or
      where Inception's weights or a reference are not what they should be.
  """
  settings = run.evaluation
  identity = identity_of(run, workdir)
  network = _inception(run) if settings.inception else _own(run, workdir)
  compiled = classifier_features(
    network.classifier,
    network.params,
    run.mesh,
    batch_size=settings.batch_size,
  )

  def features(images: np.ndarray) -> Features:
    between()
    return compiled(images)

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


def identity_of(run: Experiment, workdir: epath.Path) -> str:
  """Names the judge of a run: metric, network, its weights, and the data.

  Raises:
    ValueError: where the run has no classifier, or has not trained it yet.
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


def check_inception(run: Experiment) -> None:
  """Checks, before anything is trained, that FID can be measured later.

  Raises:
    ValueError: for weights that are not the FID network's, or fewer images
      than it has features.
  """
  load_inception(run.evaluation.inception)
  counts = {"evaluation.num_images": run.evaluation.num_images}
  if not run.evaluation.reference:
    counts["the number of training images"] = len(run.source)
  for stage in run.stages:
    if stage.select:
      field = f"stages.{stage.name}.select.num_images"
      counts[field] = stage.select.num_images
  for field, count in counts.items():
    if count <= FEATURES:
      raise ValueError(
        f"{field} is {count}, but FID has {FEATURES} features and needs more"
        " images; pass 5000 or more, or leave evaluation.inception empty"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Network:
  """A feature network with its weights.

  Args:
    detector: the name of the network.
    classifier, params: see `classifier_features`.
    metric, kernel, said: see `Judge`.
    file: the name of the file that keeps the statistics of the run's data.
    stage: the stage that made the network, where it is the run's own.
  """

  detector: str
  classifier: Classifier
  params: Params
  metric: str
  kernel: str = ""
  said: Mapping[str, str]
  file: str
  stage: Stage | None = None


def _reference(
  run: Experiment,
  workdir: epath.Path,
  network: _Network,
  identity: str,
  features: FeatureFn,
  say: Callable[[str], None],
) -> tuple[Reference, str]:
  """The data as the network sees it, and what the data is, in words."""
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
      (row["image"] for row in once(run.source, settings.batch_size)),
      features,
    ),
    detector=network.detector,
    image_shape=shape,
    features=features,
    say=say,
  )
  return reference, f"{len(run.source)} training images"


def _inception(run: Experiment) -> _Network:
  """The network of FID and KID."""
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
  """The run's own classifier, in float32 however it was trained."""
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
  """A short name of the training images; none of them is read."""
  size, digests = len(run.source), run.source.digests()
  return f"{size} images {digest_of([run.source.image_shape, digests])}"
