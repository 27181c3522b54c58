"""The finished models of a run, and one of them by its name."""

import dataclasses
from collections.abc import Callable

from etils import epath

from diffdistill.evaluation.shown import Table
from diffdistill.judging.contestants import finished_models
from diffdistill.run.experiment import Experiment
from diffdistill.sampling.one_step import OneStep
from diffdistill.tools.speaking import say
from diffdistill.training import checkpoint
from diffdistill.training.stage import Round
from diffdistill.training.training_stage import Training

TEACHER, STUDENT, CLASSIFIER = "teacher", "student", "classifier"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """A finished model.

  Args:
    name: of the round that made it, such as "halve/004"; of the folder that an
      exported model is in.
    kind: "teacher", "student" or "classifier".
    num_steps: the sampler steps that a student was made for; None for others.
  """

  name: str
  kind: str
  num_steps: int | None


def finished(run: Experiment, workdir: epath.Path) -> Table[Model]:
  """The finished models of a run, in the order of the recipe."""
  models = []
  for name, (stage, round_) in run.rounds.items():
    if stage.makes != "pairs" and checkpoint.has_final(workdir / name):
      kind = STUDENT if round_.num_steps else TEACHER
      if stage.makes == "classifier":
        kind = CLASSIFIER
      steps = round_.num_steps or None
      models.append(Model(name=name, kind=kind, num_steps=steps))
  return Table(models)


def finished_model(
  run: Experiment,
  workdir: epath.Path,
  round_name: str | None,
  num_steps: int | None,
  say: Callable[[str], None] = say,
) -> tuple[Training, Round, int]:
  """A finished model and its sampler's steps; the last one by default.

  Args:
    run: the recipe.
    workdir: where it was trained.
    round_name: of the model; None for the last one.
    num_steps: of the sampler; None for the usual number.
    say: told which models are not finished, and which is sampled in another
      number of steps than it was made for.

  Raises:
    ValueError: for a model that is not finished, and for steps of a model that
      takes one.
  """
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
