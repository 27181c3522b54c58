"""The models of a run that are judged, with the training cost of each."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from etils import epath

from diffdistill.arrays import Params
from diffdistill.diffusion.guidance import Guidance, Told
from diffdistill.evaluation.generator import Generator
from diffdistill.objectives import OBJECTIVES
from diffdistill.run.experiment import Experiment
from diffdistill.sampling.sampler import Sampler
from diffdistill.system import hosts
from diffdistill.training import checkpoint
from diffdistill.training.report import costs
from diffdistill.training.stage import Round
from diffdistill.training.training_stage import Training
from diffdistill.training.unfinished import newest_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
  """A model to judge.

  Args:
    name: the name of the round that made the model.
    num_steps: the numbers of steps to judge the model at.
    generator: makes the images.
    load: loads the model's weights.
    here: whether `load` works. If not, only rows that are kept are reported.
    facts: more columns of the model's rows.
    shown: whether the model is in the pictures too.
    sampled: text that names all that the images depend on besides weights and
      noise.
  """

  name: str
  num_steps: tuple[int, ...]
  generator: Generator
  load: Callable[..., Params]
  here: bool = True
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  shown: bool = True
  sampled: str = ""


def finished_models(
  run: Experiment, workdir: epath.Path, say: Callable[[str], None]
) -> dict[str, tuple[Training, Round]]:
  """The finished rounds that make images, in the order of the recipe.

  Raises:
    ValueError: if no round is finished.
  """
  result = {}
  for name, (stage, round_) in run.models.items():
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
  say: Callable[[str], None],
  so_far: bool = False,
) -> list[Contestant]:
  """The models to judge: the teacher, then the students.

  A student is judged at those of its own numbers of steps that the settings
  have too.

  Args:
    run: the recipe; its `evaluation` names the numbers of steps.
    workdir: the folder where the run was trained.
    say: receives a line for each unfinished round, and for unjudged students.
    so_far: whether to add students that still train, with the weights of their
      newest checkpoint.

  Raises:
    ValueError: if the run has no finished teacher of its own.
  """
  settings = run.evaluation

  @functools.cache
  def generator(
    sampler: Sampler, guidance: Guidance | Told | None
  ) -> Generator:
    size = min(settings.batch_size, settings.num_images)
    return run.generator(sampler, size, guidance=guidance)

  spent = costs(workdir, say)
  result: list[Contestant] = []
  # A student that still trains is not left out.
  models = finished_models(run, workdir, _silent if so_far else say)
  _say_absent(models, settings.num_steps, say)
  training: dict[str, int] = {}
  if so_far:
    training = hosts.on_first(lambda: unfinished_students(run, workdir, models))
  models |= {name: run.models[name] for name in training}
  for name, (stage, round_) in models.items():
    steps, chain = settings.num_steps, []
    if round_.num_steps:
      steps = tuple(n for n in steps if n in round_.all_steps)
      chain = list(run.lineage(name, students=True))
    facts = _facts(stage, [spent[made] for made in chain if made in spent])
    sampler = stage.objective.sampler
    assert sampler is not None  # each of these models makes images
    guidance = run.usual_guidance(round_)
    maker = generator(sampler, guidance)
    sampled = f"{sampler} {guidance}"
    if not sampler.deterministic:
      sampled += f" in batches of {maker.batch_size}"
    usual = Contestant(
      name=name,
      num_steps=steps,
      generator=maker,
      load=functools.partial(run.product, workdir, name),
      facts=facts,
      sampled=sampled,
    )
    if steps and name in training:
      result.append(_so_far(usual, run, workdir, training[name]))
    elif steps:
      result += _versions(usual, workdir, stage)
  if not result or run.rounds[result[0].name][1].num_steps:
    raise ValueError(
      f"{workdir} has no teacher of its own to judge students by; train one in"
      " the same run"
    )
  return result


def _silent(line: str) -> None:
  """Says nothing."""


def _say_absent(
  models: Mapping[str, tuple[Training, Round]],
  num_steps: Sequence[int],
  say: Callable[[str], None],
) -> None:
  """Names the students whose number of steps is not among `num_steps`."""
  absent = [
    name
    for name, (_, round_) in models.items()
    if not set(round_.all_steps) & {0, *num_steps}
  ]
  if absent:
    say(f"not judged, because num_steps lacks their steps: {', '.join(absent)}")


def _versions(
  usual: Contestant, workdir: epath.Path, stage: Training
) -> list[Contestant]:
  """Lists the versions of its weights that a finished round kept.

  A round that selects its best weights may also have kept its last weights.
  """
  last = f"last_{stage.product}"
  here, left = checkpoint.products_of(workdir / usual.name)
  versions = [dataclasses.replace(usual, here=stage.product in here)]
  if last in here | left:
    contestant = dataclasses.replace(
      usual,
      name=f"{usual.name} last",
      load=functools.partial(usual.load, last=True),
      here=last in here,
      shown=False,
    )
    versions.append(contestant)
  return versions


def unfinished_students(
  run: Experiment, workdir: epath.Path, finished: Collection[str]
) -> dict[str, int]:
  """The updates of the newest checkpoint of each student that still trains.

  Only the first process may call this.
  """
  steps = {
    name: newest_step(workdir / name)
    for name, (_, round_) in run.models.items()
    if name not in finished and round_.num_steps
  }
  return {name: step for name, step in steps.items() if step}


def _so_far(
  usual: Contestant, run: Experiment, workdir: epath.Path, step: int
) -> Contestant:
  """A student that still trains, with the weights of a checkpoint."""
  return dataclasses.replace(
    usual,
    name=f"{usual.name} so far",
    load=functools.partial(run.product_so_far, workdir, usual.name, step),
    facts={**usual.facts, "updates": step},
    shown=False,
  )


def _facts(
  stage: Training, spent: Sequence[tuple[int | float, int | float]]
) -> dict[str, Any]:
  """The paper of a model, and the cost of the rounds that led to the model.

  Args:
    stage: the stage that made the model.
    spent: the passes and the seconds of each round that led to the model.
  """
  return {
    "paper": next(
      name for name, cls in OBJECTIVES.items() if cls is type(stage.objective)
    ),
    "training_passes": round(sum(passes for passes, _ in spent)),
    "training_seconds": round(sum(seconds for _, seconds in spent)),
  }
