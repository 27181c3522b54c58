"""Who of a run is judged, by what, and at what cost it was trained."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from diffdistill.arrays import Params
from diffdistill.data.pipeline import once
from diffdistill.diffusion.guidance import Guidance
from diffdistill.evaluation.features import (
  FeatureFn,
  Reference,
  classifier_features,
  reference_statistics,
)
from diffdistill.evaluation.generator import Generator
from diffdistill.evaluation.metrics import distance
from diffdistill.evaluation.settings import Settings
from diffdistill.evaluation.trust import Trust
from diffdistill.interop.torch_inception import SHA256, load_inception
from diffdistill.judging.comparison import (
  Contestant,
  distance_of_halves,
)
from diffdistill.judging.held_out import check_classes, measure
from diffdistill.judging.judged_rows import FOLDER, JudgedRows
from diffdistill.judging.kept_reference import kept_reference
from diffdistill.judging.references import (
  load_reference,
  require_enough_images,
)
from diffdistill.networks.inception import FEATURES, RESIZER, inception
from diffdistill.objectives import OBJECTIVES
from diffdistill.run.experiment import Experiment, classifier_of
from diffdistill.sampling.sampler import Sampler
from diffdistill.system import hosts
from diffdistill.system.files import digest_of
from diffdistill.training import checkpoint
from diffdistill.training.fingerprint import fingerprint
from diffdistill.training.report import costs
from diffdistill.training.stage import Round, Stage

# Not a setting: a stochastic sampler's images depend on it, and on them which
# weights are kept.
SCORED_AT_A_TIME = 500
FID = "FID"
DETECTOR = "Inception-v3 of 2015-12-05"
# The same batches, one after the other.
Each = Callable[[Iterable[Any]], Iterator[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judge:
  """The network that judges a run, and the data as it sees it.

  Args:
    metric: the name of its distance.
    kernel: the name of its kernel distance; empty where there is none.
    trust: measures how right it is, where it is a classifier; see trust.py.
    features: the feature network.
    reference: of the training data.
    said: of the network and the data, by name.
    identity: see `identity_of`.
  """

  metric: str
  features: FeatureFn
  reference: Reference
  said: Mapping[str, str]
  identity: str
  kernel: str = ""
  trust: Callable[[], Trust] | None = None

  def check(self, num_images: int) -> None:
    """Refuses too few images for a FID, which others will compare.

    Raises:
      ValueError: where there are not more images than features.
    """
    if self.metric == FID:
      require_enough_images(self.reference, num_images)

  def require_trust(self, stage: str) -> None:
    """Refuses to select by a judge that is no better than chance.

    Args:
      stage: that selects by its distance.

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
    """What a reader must know of it."""
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
  each: Each = iter,
  say: Callable[[str], None] = lambda line: None,
) -> Judge:
  """The judge of a run: Inception, or the classifier of its first such stage.

  Args:
    run: the recipe, whose `evaluation` may name Inception's weights.
    workdir: where it was trained.
    each: sees the batches of its data go by.
    say: told which kept files are damaged.

  Raises:
    ValueError: where the run has none, or it is not trained yet; or where
      Inception's weights or a reference are not what they should be.
  """
  if run.evaluation.inception:
    return _inception(run, workdir, each, say)
  stage, identity = _judging_stage(run, workdir), identity_of(run, workdir)
  features = classifier_features(
    _in_float32(classifier_of(stage)),
    run.product(workdir, stage.name),
    run.mesh,
    batch_size=run.evaluation.batch_size,
  )
  path = workdir / FOLDER / "reference.npz"
  reference = _own_reference(
    run, workdir, path, identity, stage.name, features, each, say
  )
  return Judge(
    trust=functools.cache(lambda: measure(run, stage, features, each)),
    metric=f"FD-{stage.name}",
    features=features,
    reference=reference,
    said={
      "detector": f"the run's own {stage.name}: no FID",
      "reference": f"{len(run.source)} training images",
    },
    identity=identity,
  )


def identity_of(run: Experiment, workdir: epath.Path) -> str:
  """Names the judge of a run: metric, network, its weights, and the data.

  Raises:
    ValueError: as of `judge_of`.
  """
  if run.evaluation.inception:
    if run.evaluation.reference:
      read = epath.Path(run.evaluation.reference).read_bytes()
      data = hashlib.sha256(read).hexdigest()
    else:
      data = _data(run)
    return f"{FID}: {DETECTOR} {SHA256} of {data}"
  name = _judging_stage(run, workdir).name
  weights = fingerprint(run.product(workdir, name))
  return f"FD-{name}: {weights} of {_data(run)}"


def _judging_stage(run: Experiment, workdir: epath.Path) -> Stage:
  stage = run.judging_stage
  if stage is None:
    raise ValueError(
      f"the run in {workdir} has no classifier stage, whose features judge"
      " images; add one at the end of config.run and train again, or pass"
      " --inception"
    )
  check_classes(run, stage)
  return stage


def _in_float32(classifier: Any) -> Any:
  """A classifier as it judges, however it was trained."""
  if not hasattr(classifier.module, "dtype"):
    return classifier
  module = classifier.module.clone(dtype="float32")
  return dataclasses.replace(classifier, module=module)


def check_inception(run: Experiment) -> None:
  """Refuses, before anything is trained, what a FID could not be of later.

  Raises:
    ValueError: for weights that are not the FID network's, or fewer images
      than it has features.
  """
  load_inception(run.evaluation.inception)
  counts = {"evaluation.num_images": run.evaluation.num_images}
  if not run.evaluation.reference:
    counts["the number of training images"] = len(run.source)
  for stage in run.stages:
    if isinstance(stage, Stage) and stage.select:
      field = f"stages.{stage.name}.select.num_images"
      counts[field] = stage.select.num_images
  for field, count in counts.items():
    if count <= FEATURES:
      raise ValueError(
        f"{field} is {count}, but FID has {FEATURES} features and needs more"
        " images; pass 5000 or more, or leave evaluation.inception empty"
      )


def _inception(
  run: Experiment,
  workdir: epath.Path,
  each: Each,
  say: Callable[[str], None],
) -> Judge:
  """The judge of FID; a reference that it makes is kept in the workdir."""
  settings, shape = run.evaluation, run.source.image_shape
  identity = identity_of(run, workdir)
  everywhere = NamedSharding(run.mesh, PartitionSpec())
  params = jax.tree.map(
    lambda leaf: hosts.place(leaf, everywhere),
    load_inception(settings.inception),
  )
  features = classifier_features(
    inception(shape), params, run.mesh, batch_size=settings.batch_size
  )
  if settings.reference:
    reference = load_reference(
      settings.reference,
      detector=DETECTOR,
      dim=FEATURES,
      image_shape=shape,
      features=features,
    )
    said = settings.reference
    if not reference.stated:
      said += ", which does not say how its network resized images"
  else:
    said = f"{len(run.source)} training images"
    path = workdir / "inception_reference.npz"
    reference = _own_reference(
      run, workdir, path, identity, DETECTOR, features, each, say
    )
  return Judge(
    metric=FID,
    kernel="KID",
    features=features,
    reference=reference,
    said={
      "detector": f"{DETECTOR}, weights of SHA-256 {SHA256}",
      "resizer": RESIZER,
      "reference": said,
    },
    identity=identity,
  )


def _own_reference(
  run: Experiment,
  workdir: epath.Path,
  path: epath.Path,
  identity: str,
  detector: str,
  features: FeatureFn,
  each: Each,
  say: Callable[[str], None],
) -> Reference:
  """The statistics of the run's own data; made once, and kept."""
  return kept_reference(
    path,
    workdir / FOLDER / f"{path.stem}.json",
    identity,
    lambda: reference_statistics(
      (
        row["image"]
        for row in each(once(run.source, run.evaluation.batch_size))
      ),
      features,
    ),
    detector=detector,
    image_shape=run.source.image_shape,
    features=features,
    say=say,
  )


def _data(run: Experiment) -> str:
  """A short name of the training images; none of them is read."""
  size, digests = len(run.source), run.source.digests()
  return f"{size} images {digest_of([run.source.image_shape, digests])}"


class Scorer:
  """Scores students while they are trained, by distance: lower is better.

  Args:
    run: the recipe.
    workdir: where it is trained.
    each: sees the batches that are scored go by.
    say: told which kept files are damaged.
  """

  def __init__(
    self,
    run: Experiment,
    workdir: epath.Path,
    each: Each,
    say: Callable[[str], None] = lambda line: None,
  ):
    self._run = run
    self._each = each
    self._judge = functools.cache(lambda: judge_of(run, workdir, each, say))

    @functools.cache
    def generator(
      sampler: Sampler, guidance: Guidance | None, num_images: int
    ) -> Generator:
      size = min(SCORED_AT_A_TIME, num_images)
      return run.generator(sampler, size, guidance=guidance)

    self._generator = generator

  def begins(self, stage: Stage) -> None:
    """Refuses a stage that would select by a judge that is not trusted.

    Raises:
      ValueError: where that is so.
    """
    if stage.select and stage.select.by == "distance":
      self._judge().require_trust(stage.name)

  def __call__(
    self, stage: Stage, round_: Round, params: Params, num_images: int
  ) -> float:
    run, sampler = self._run, stage.objective.sampler
    assert sampler is not None  # only images can be selected by distance
    judge = self._judge()
    judge.check(num_images)
    guidance = run.usual_guidance(round_)
    maker = self._generator(sampler, guidance, num_images)
    # Not the noise that students are judged on in the end.
    seed = run.seed ^ round_.code
    images = maker.batches(params, seed, num_images, run.usual_steps(round_))
    return distance(self._each(images), judge.features, judge.reference)


def finished_models(
  run: Experiment, workdir: epath.Path, say: Callable[[str], None]
) -> dict[str, tuple[Stage, Round]]:
  """The finished rounds that make images, in the order of the recipe.

  Raises:
    ValueError: where there are none.
  """
  result = {}
  for name, (stage, round_) in run.rounds.items():
    if not isinstance(stage, Stage) or stage.objective.sampler is None:
      continue
    if checkpoint.has_final(workdir / name):
      result[name] = (stage, round_)
    else:
      say(f"{name} is not finished; it is left out")
  if not result:
    raise ValueError(f"{workdir} has no finished model yet; train first")
  return result


def contestants(
  run: Experiment,
  workdir: epath.Path,
  settings: Settings,
  say: Callable[[str], None],
) -> list[Contestant]:
  """The teacher, then the students made for one of the numbers of steps.

  Raises:
    ValueError: where the run has no finished teacher of its own.
  """

  @functools.cache
  def generator(sampler: Sampler, guidance: Guidance | None) -> Generator:
    size = min(settings.batch_size, settings.num_images)
    return run.generator(sampler, size, guidance=guidance)

  spent = costs(workdir, say)
  result = []
  for name, (stage, round_) in finished_models(run, workdir, say).items():
    steps, chain = settings.num_steps, []
    if round_.num_steps:
      steps = tuple(n for n in steps if n == round_.num_steps)
      chain = list(run.lineage(name, students=True))
    facts = {
      "paper": _paper(stage),
      "training_passes": round(sum(spent[r][0] for r in chain if r in spent)),
      "training_seconds": round(sum(spent[r][1] for r in chain if r in spent)),
    }
    product = stage.objective.trains[0]
    here, left = checkpoint.products_of(workdir / name)
    versions = [(name, product)]
    if f"last_{product}" in here | left:
      versions.append((f"{name} last", f"last_{product}"))
    for version, product in versions if steps else ():
      sampler = stage.objective.sampler
      assert sampler is not None
      guidance = run.usual_guidance(round_)
      maker = generator(sampler, guidance)
      sampled = f"{sampler} {guidance}"
      if not sampler.deterministic:
        sampled += f" in batches of {maker.batch_size}"
      last = version != name
      load = functools.partial(run.product, workdir, name, last=last)
      result.append(
        Contestant(
          name=version,
          num_steps=steps,
          generator=maker,
          load=load,
          here=product in here,
          facts=facts,
          shown=not last,
          sampled=sampled,
        )
      )
  if not result or run.rounds[result[0].name][1].num_steps:
    raise ValueError(
      f"{workdir} has no teacher of its own to judge students by; train one in"
      " the same run"
    )
  return result


def judged_rows(
  run: Experiment,
  workdir: epath.Path,
  identity: str,
  say: Callable[[str], None] = lambda line: None,
) -> JudgedRows:
  """The rows of a run that are done, for a judge of that identity."""
  settings = run.evaluation
  return JudgedRows(
    folder=workdir / FOLDER,
    made_with={
      "num_images": settings.num_images,
      "seed": settings.seed,
      "gap_images": min(settings.gap_images, settings.num_images),
      "judge": identity,
      "labels": run.label_rule,
    },
    devices=run.devices,
    fingerprint=fingerprint,
    say=say,
  )


def _paper(stage: Stage) -> str:
  """The name of a stage's objective in the table of papers."""
  return next(
    n for n, cls in OBJECTIVES.items() if cls is type(stage.objective)
  )
