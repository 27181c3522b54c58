"""The order of a run's rounds, and what each round takes from earlier rounds.

A round can take weights or pairs of noise and image.
"""

import itertools
from collections.abc import Mapping, Sequence

from diffdistill.training.pairs_stage import pairs_stages
from diffdistill.training.stage import (
  OUTSIDE,
  SECOND_MOMENTS,
  Round,
  Stage,
)


def halved(start_steps: int, end_steps: int) -> list[int]:
  """The numbers of steps of students that each have half of their teacher's.

  Args:
    start_steps: the steps of the first teacher, a power of 2 times `end_steps`.
    end_steps: the steps of the last student.
  """
  halvings = (start_steps // end_steps).bit_length() - 1
  return [start_steps >> i for i in range(1, halvings + 1)]


def curriculum(
  stages: tuple[Stage, ...],
) -> tuple[tuple[Stage, Round], ...]:
  """Returns every round of a run with its stage, in order.

  Raises:
    ValueError: if a stage names weights or pairs that no earlier stage makes,
      or weights of the wrong kind.
  """
  # This holds the earlier rounds by name. The name of a stage stands for the
  # last round of the stage.
  made: dict[str, tuple[Stage, Round]] = {}
  result = []
  for stage in stages:
    frozen = {
      name: _source(stage, name, source, made)
      for name, source in stage.frozen.items()
    }
    teacher = made.get(frozen.get("teacher", ""))
    guided = teacher is None or teacher[1].num_steps == 0
    if stage.pairs:
      _check_pairs(stage, [earlier for earlier, _ in made.values()])
    if teacher is not None:
      _check_teacher(stage, teacher[1])
    if "teacher" in frozen:
      _check_told(stage, frozen["teacher"], teacher)
    for round_ in stage.rounds(frozen, guided):
      made[round_.name] = made[stage.name] = (stage, round_)
      result.append((stage, round_))
  return tuple(result)


def judging_stage(stages: tuple[Stage, ...]) -> Stage | None:
  """Finds the first stage that makes a classifier, which judges the run.

  Returns None if no stage makes a classifier.
  """
  return next((s for s in stages if s.makes == "classifier"), None)


def check_judges(stages: tuple[Stage, ...]) -> None:
  """Refuses a selection by distance in a stage before the classifier's stage.

  The distance is measured with the features of the classifier.

  Raises:
    ValueError: if a stage selects by distance before the judging stage.
  """
  judge = judging_stage(stages)
  for stage in itertools.takewhile(lambda stage: stage is not judge, stages):
    if stage.select and stage.select.by == "distance":
      raise ValueError(
        f"stages.{stage.name}.select.by is 'distance', which needs an earlier"
        " classifier stage to judge images, or the FID network; add one to"
        " config.run, pass evaluation.inception, or leave select out"
      )


def _source(
  stage: Stage,
  name: str,
  source: str,
  made: Mapping[str, tuple[Stage, Round]],
) -> str:
  """Finds the round, or the address outside the run, that has a frozen tree."""
  field = f"stages.{stage.name}.frozen"
  if source.startswith(OUTSIDE):
    if source.startswith("imported:") and name != "classifier":
      raise ValueError(
        f"{field} imports its {name} from {source!r}; give that to the source"
        f" of a {name}'s stage, and name the stage here"
      )
    return source
  if source not in made:
    raise ValueError(
      f"{field} names {source!r}, which is no earlier stage; the earlier ones"
      f" are {', '.join(made) or 'none'}"
    )
  maker, round_ = made[source]
  if name == SECOND_MOMENTS and (round_.num_steps or maker.source):
    which = "trains nothing" if maker.source else "makes a student"
    raise ValueError(
      f"{field} takes its {name} from {source!r}, which {which}; only a stage"
      " that trains a teacher keeps them (fine_tuning with a learning rate of 0"
      " makes them for any teacher)"
    )
  if maker.makes != ("classifier" if name == "classifier" else "denoiser"):
    raise ValueError(
      f"{field} takes its {name} from {source!r}, which makes something else;"
      " name another stage"
    )
  return round_.name


def _check_pairs(stage: Stage, earlier: Sequence[Stage]) -> None:
  """Checks that a stage can learn from the stage of pairs that it names."""
  pairs = pairs_stages(earlier).get(stage.pairs)
  if pairs is None:
    raise ValueError(
      f"stages.{stage.name}.pairs names {stage.pairs!r}, which is no earlier"
      " stage of pairs; pass the name of one"
    )
  for field in ("shard_size", "held_out"):
    if getattr(pairs, field) % stage.batch_size:
      raise ValueError(
        f"stages.{pairs.name}.{field} is {getattr(pairs, field)}, which"
        f" stages.{stage.name}.batch_size={stage.batch_size} does not divide;"
        " pass a multiple of it"
      )
  if stage.minutes and pairs.max_gigabytes:
    raise ValueError(
      f"stages.{stage.name}.minutes is {stage.minutes}, but over how many"
      f" updates the rolling pool of stages.{pairs.name} moves must be known"
      " from the start; pass a max_gigabytes of 0 there, or no minutes here"
    )
  if stage.select and stage.select.by == "held_out_loss" and not pairs.held_out:
    raise ValueError(
      f"stages.{stage.name}.select.by is 'held_out_loss', but"
      f" stages.{pairs.name}.held_out is 0; pass {stage.batch_size} or more"
    )


def _check_teacher(stage: Stage, teacher: Round) -> None:
  """Refuses a start_steps that is not the number of steps of the teacher.

  Only a teacher that is itself a student has a number of steps.
  """
  if stage.start_steps and teacher.num_steps not in (0, stage.start_steps):
    raise ValueError(
      f"stages.{stage.name}.start_steps is {stage.start_steps}, but its teacher"
      f" {teacher.name} was made for {teacher.num_steps} steps; pass"
      f" start_steps={teacher.num_steps}"
    )


def _check_told(
  stage: Stage, name: str, teacher: tuple[Stage, Round] | None
) -> None:
  """Refuses a teacher that is told other guidance weights than the stage says.

  Args:
    stage: the stage that learns from the teacher.
    name: the round or the address of the teacher.
    teacher: the stage and the round of the teacher; None if it is outside.
  """
  knows, wanted = teacher[0].told if teacher else (), stage.teacher_told
  if wanted:
    if knows and knows[0] <= wanted[0] and wanted[1] <= knows[1]:
      return
    learned = "no guidance weight" if not knows else f"weights in {knows}"
    raise ValueError(
      f"stages.{stage.name}.objective.told is {wanted}, but the teacher {name}"
      f" is told {learned}; pass the stage of a guidance_distillation with such"
      " weights as its teacher"
    )
  if knows:
    raise ValueError(
      f"stages.{stage.name} has the teacher {name}, which is told a guidance"
      " weight, but this stage tells it none; pass another teacher, or"
      f" objective.kind=progressive with objective.told={knows}"
    )
  if stage.told and teacher and teacher[1].num_steps:
    raise ValueError(
      f"stages.{stage.name} has the teacher {name}, which is a student and"
      " cannot be guided; pass the stage of a teacher"
    )
