"""A finished model of a run, found by its name."""

from etils import epath

from diffdistill.judging.contestants import finished_models
from diffdistill.run.experiment import Experiment
from diffdistill.sampling.one_step import OneStep
from diffdistill.tools.speaking import say
from diffdistill.training.stage import Round
from diffdistill.training.training_stage import Training


def finished_model(
  run: Experiment,
  workdir: epath.Path,
  round_name: str | None,
  num_steps: int | None,
) -> tuple[Training, Round, int]:
  """A finished model and its sampler's steps; the last one by default."""
  models = finished_models(run, workdir, say)
  name = round_name or list(models)[-1]
  if name not in models:
    raise ValueError(
      f"round is {name!r}, which is not finished or does not exist; pass one of"
      f" {', '.join(models)}"
    )
  stage, round_ = models[name]
  if isinstance(stage.objective.sampler, OneStep) and num_steps not in (
    None,
    1,
  ):
    raise ValueError(
      f"num_steps is {num_steps}, but {name} makes its images in one; leave it"
      " out"
    )
  steps = num_steps or run.usual_steps(round_)
  if round_.num_steps not in (0, steps):
    say(
      f"{name} was made for {round_.num_steps} steps and is sampled in {steps};"
      f" leave num_steps out for {round_.num_steps}"
    )
  return stage, round_, steps
