"""Scores a student during training, to select its best weights."""

import functools
from collections.abc import Callable

from etils import epath

from diffdistill.arrays import Params
from diffdistill.diffusion.guidance import Guidance, Told
from diffdistill.evaluation.generator import Generator
from diffdistill.evaluation.metrics import distance
from diffdistill.judging.judge import judge_of, nothing, trust_of
from diffdistill.run.experiment import Experiment
from diffdistill.sampling.sampler import Sampler
from diffdistill.training.stage import Round
from diffdistill.training.training_stage import Training

# The batch size when students are scored. It is no setting, because the images
# of a stochastic sampler, and so the selected weights, depend on it.
SCORED_AT_A_TIME = 500


class Scorer:
  """Scores students while they are trained, by distance: lower is better.

  Args:
    run: the recipe.
    workdir: the folder where the run is trained.
    between: called before each batch that the judge looks at.
    say: receives a line for each damaged file, and one about the judge.
  """

  def __init__(
    self,
    run: Experiment,
    workdir: epath.Path,
    between: Callable[[], None] = nothing,
    say: Callable[[str], None] = lambda line: None,
  ):
    self._run = run
    self._workdir = workdir
    self._between = between
    self._say = say
    self._judge = functools.cache(lambda: judge_of(run, workdir, between, say))

    @functools.cache
    def generator(
      sampler: Sampler, guidance: Guidance | Told | None, num_images: int
    ) -> Generator:
      size = min(SCORED_AT_A_TIME, num_images)
      return run.generator(sampler, size, guidance=guidance)

    self._generator = generator

  def begins(self, stage: Training) -> None:
    """Refuses a stage that selects weights by a judge that is not trusted.

    Raises:
      ValueError: if the judge is not trusted.
    """
    if stage.select and stage.select.by == "distance":
      self._judge().require_trust(stage.name)

  def ends(self, stage: Training) -> None:
    """Says whether the run's classifier can judge, once it is trained."""
    run = self._run
    if run.evaluation.inception or stage is not run.judging_stage:
      return
    trust = trust_of(run, self._workdir, self._between)
    remedy = "" if trust.trusted else f"; {_remedy(stage)}"
    self._say(f"{stage.name} as a judge is {trust.verdict}{remedy}")

  def __call__(
    self, stage: Training, round_: Round, params: Params, num_images: int
  ) -> float:
    run, sampler = self._run, stage.objective.sampler
    assert sampler is not None  # a stage that is scored makes images
    judge = self._judge()
    judge.check(num_images)
    guidance = run.usual_guidance(round_)
    maker = self._generator(sampler, guidance, num_images)
    # Use other noise than the final evaluation, so that it stays independent.
    seed = run.seed ^ round_.code
    images = maker.batches(params, seed, num_images, run.usual_steps(round_))
    return distance(images, judge.features, judge.reference)


def _remedy(stage: Training) -> str:
  """Names what a user can do if the classifier of a stage is not trusted."""
  longer = "minutes" if stage.minutes else "num_updates"
  return (
    "distances will not measure the models; pass more"
    f" --config.stages.{stage.name}.{longer} in a new --workdir, or more"
    " images, or judge by --inception"
  )
