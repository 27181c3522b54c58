"""Lists the finished models of a run, and finds one by its name."""

import dataclasses
from collections.abc import Callable

from etils import epath

from diffdistill.evaluation.shown import Table
from diffdistill.judging.contestants import finished_models
from diffdistill.ranges import STEPS, whole_number
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
    name: the name of the round that made the model, such as "halve/004", or of
      the folder of an exported model.
    kind: "teacher", "student" or "classifier".
    num_steps: the number of sampler steps that a student was made for; None for
      other models.
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
  """Finds a finished model and its number of sampler steps.

  Args:
    run: the recipe.
    workdir: the folder of the run.
    round_name: the round of the model; None means the last finished model.
    num_steps: the number of sampler steps; None means the model's usual number.
    say: receives one line for each unfinished model, and one line if a student
      is sampled in another number of steps than it was made for.

  Returns:
    The stage and the round that made the model, and its number of steps.

  Raises:
    ValueError: if the model is not finished, if `num_steps` is out of its range
      or if it is not 1 for a one-step model.
  """
  if num_steps is not None:
    num_steps = whole_number("num_steps", num_steps, STEPS)
  models = finished_models(run, workdir, say)
  name = list(models)[-1] if round_name is None else round_name
  if name not in models:
    is_finished = name in {model.name for model in finished(run, workdir)}
    problem = (
      "makes no images" if is_finished else "is not finished or does not exist"
    )
    raise ValueError(
      f"the model is {name!r}, which {problem}; pass one of {', '.join(models)}"
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
  steps = run.usual_steps(round_) if num_steps is None else num_steps
  if not {0, steps} & set(round_.all_steps):
    made = " or ".join(map(str, round_.all_steps))
    say(
      f"{name} was made for {made} steps and is sampled in {steps};"
      f" leave num_steps out for {round_.num_steps}"
    )
  return stage, round_, steps
