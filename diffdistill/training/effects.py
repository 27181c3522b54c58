"""Refuses fields that have no effect, and batches that are too large.

A person who sets a field expects an effect. If the rest of the recipe leaves
the field without one, the recipe is refused before anything is trained.
"""

import math
from collections.abc import Iterator, Sequence

from diffdistill.objectives.objective import Objective
from diffdistill.training.cadence import Cadence
from diffdistill.training.stage import Stage
from diffdistill.training.training_stage import Training, trainings

# This is the largest number of values in one batch of images. In float32 they
# take 32 GiB, on all devices together.
LARGEST_BATCH = 2**33


def check_effects(stages: Sequence[Stage]) -> None:
  """Refuses a stage with a field that has no effect.

  Raises:
    ValueError: if a field has no effect.
  """
  for stage in trainings(stages).values():
    _check_rounds(stage)
    # A stage that loads its weights from outside trains nothing.
    if not stage.source:
      _check_training(stage)


def check_memory(
  stages: Sequence[Stage], image_shape: tuple[int, int, int]
) -> None:
  """Refuses batches that do not fit into the memory of any machine.

  Raises:
    ValueError: if a stage has such a batch; the message names its field.
  """
  for stage in stages:
    for field, number in stage.at_a_time.items():
      check_images(number, image_shape, f"stages.{stage.name}.{field}")


def check_images(
  number: int, image_shape: tuple[int, int, int], name: str = "num_images"
) -> None:
  """Refuses a number of images that fits into the memory of no machine.

  Args:
    number: how many images are in memory at a time.
    image_shape: the shape of one image.
    name: the field or flag that the message names.

  Raises:
    ValueError: if there are too many images.
  """
  pixels = math.prod(image_shape)
  if number * pixels > LARGEST_BATCH:
    raise ValueError(
      f"{name} is {number}, and so many images of {image_shape} take"
      f" {4 * number * pixels / 2**30:,.0f} GiB; pass at most"
      f" {LARGEST_BATCH // pixels}"
    )


def notes(stages: Sequence[Stage], cadence: Cadence) -> Iterator[str]:
  """Returns a line for each interval that is longer than every round.

  Such intervals, between checkpoints for example, are not refused, because a
  short trial of a long recipe has them.
  """
  longest = max(stage.longest for stage in stages)
  for name, every, effect in (
    ("log", cadence.log, "only the last update of each round is logged"),
    (
      "checkpoint",
      cadence.checkpoint,
      "a round that is killed begins again at its first update",
    ),
    ("observe", cadence.observe, "images are drawn at the end of rounds only"),
  ):
    if every > longest > 0:
      yield (
        f"cadence.{name} is {every}, but no round has more than {longest}"
        f" updates: {effect}"
      )


def _check_rounds(stage: Training) -> None:
  """Refuses fields that only an objective that halves the steps would use."""
  halving = stage.objective.rounds == "halving"
  for name in ("end_steps", "long_rounds"):
    value, usual = getattr(stage, name), getattr(Training, name)
    if not halving and value != usual:
      raise ValueError(
        f"stages.{stage.name}.{name} is {value}, but its objective halves"
        " nothing; remove it"
      )
  if halving and stage.long_rounds > stage.start_steps:
    raise ValueError(
      f"stages.{stage.name}.long_rounds is {stage.long_rounds}, but its"
      f" students have at most {stage.start_steps // 2} steps; pass"
      f" {stage.start_steps // 2} or less"
    )


def _check_training(stage: Training) -> None:
  """Refuses fields of a trained stage that have no effect."""
  path, optimizer = f"stages.{stage.name}", stage.optimizer
  longest = stage.longest
  if optimizer.learning_rate == 0 and not _tunes(stage.objective):
    raise ValueError(
      f"{path}.optimizer.learning_rate is 0, so that nothing is learned; pass"
      " more than 0"
    )
  for name, value in (
    ("optimizer.warmup", optimizer.warmup),
    ("updates_per_call", stage.updates_per_call),
  ):
    if value > stage.num_updates:
      raise ValueError(
        f"{path}.{name} is {value}, but its rounds have {stage.num_updates}"
        f" updates; pass {stage.num_updates} or less, or more num_updates"
      )
  select = stage.select
  if select and select.every > longest:
    raise ValueError(
      f"{path}.select.every is {select.every}, but its rounds have"
      f" {longest} updates, so that nothing is selected; pass {longest} or"
      " less, or 0"
    )
  if select and select.patience * select.every > longest:
    raise ValueError(
      f"{path}.select.patience is {select.patience} times every={select.every}"
      f" updates, but its rounds have {longest}, so that none ends earlier;"
      f" pass {longest // select.every} or less, or 0"
    )


def _tunes(objective: Objective) -> bool:
  """Whether the objective continues the training of its teacher.

  Such an objective may have a learning rate of 0, because it still estimates
  the teacher's second moments.

  Even with a learning rate of 0, it estimates the teacher's second moments.
  """
  return "teacher" in objective.trees and "teacher" in objective.starts
