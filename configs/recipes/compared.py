"""Three papers beside progressive distillation, at one budget [ours].

The budget is a number of network passes. `compared_jumps` adds more students.
"""

from typing import Any

from diffdistill.configs.recipes.classifier_features import classifier_features
from diffdistill.configs.recipes.denoising_student import denoising_student
from diffdistill.configs.recipes.moment_matching import moment_matching
from diffdistill.configs.recipes.stages import Fields
from diffdistill.configs.recipes.teachers import expert

# The passes of one image through the denoiser in one update of each objective.
PASSES = {
  "progressive": 5,
  "moment_matching": 5,
  "parameter_moment_matching": 5,
  "denoising_student": 3,
}


def compared(
  config: Any,
  *,
  learning_rate: float,
  moments_rate: float,
  parameter_rate: float,
  select_every: int,
  pairs: Fields,
) -> None:
  """Adds three other papers, each with as many passes as the stage "halve".

  A pass is one image forward through the denoiser. A gradient counts as three
  passes, and so does a derivative along the weights. The classifiers, the
  held-out losses and the distances that select a student are not counted. The
  settings are [ours], and as similar as the papers allow. The numbers of
  updates are computed here: if the command line changes a number, it changes
  the budget of that paper.

  Args:
    config: has the stage "halve", whose batch size all stages get.
    learning_rate: for feature distillation and the denoising student.
    moments_rate: the learning rate of moment matching with an auxiliary.
    parameter_rate: the learning rate of moment matching in parameter space.
    select_every: updates between the scores that select a student.
    pairs: the fields as in `denoising_student`; their passes are part of its
      budget.
  """
  halve = config.stages.halve
  batch_size, budget = halve.batch_size, passes_of(halve)
  expert(config)
  # The rounds of features begin from the 8-step student of `halve`.
  classifier_features(
    config,
    classifier="expert",
    learning_rate=learning_rate,
    batch_size=batch_size,
    num_updates=halve.num_updates,
    decay="linear",
  )
  _moments(
    config, budget, batch_size, select_every, moments_rate, parameter_rate
  )
  _student_of_pairs(
    config, budget, batch_size, select_every, learning_rate, pairs
  )


def _moments(
  config: Any,
  budget: int,
  batch_size: int,
  select_every: int,
  moments_rate: float,
  parameter_rate: float,
) -> None:
  """Adds both kinds of moment matching, each with the passes of `halve`."""
  for kind, learning_rate in (
    ("moment_matching", moments_rate),
    ("parameter_moment_matching", parameter_rate),
  ):
    moment_matching(
      config,
      kind,
      learning_rate=learning_rate,
      num_updates=round(budget / batch_size / PASSES[kind]),
      batch_size=batch_size,
      select_every=select_every,
      select_images=1000,
      warmup=100,
      ema_decay=0.998,
    )


def _student_of_pairs(
  config: Any,
  budget: int,
  batch_size: int,
  select_every: int,
  learning_rate: float,
  pairs: Fields,
) -> None:
  """Adds the denoising student; the passes of its pairs count in the budget."""
  made = pairs["num_steps"] * (pairs["num_pairs"] + pairs["held_out"])
  denoising_student(
    config,
    pairs=pairs,
    optimizer={
      "learning_rate": learning_rate,
      "warmup": 100,
      "decay": "linear",
      "b1": 0.9,
      "b2": 0.98,  # [DS code]
      "ema_decay": 0.995,  # [DS code]
    },
    num_updates=round(
      (budget - made) / batch_size / PASSES["denoising_student"]
    ),
    batch_size=batch_size,
    norm="l1",  # [DS code], CIFAR-10
    form="x0",
    select_every=select_every,
  )


def passes_of(halve: Any) -> int:
  """Counts the passes of the stage "halve", which are the budget of others.

  Its last two rounds have twice the updates.
  """
  rounds = halve.start_steps.bit_length() - 1
  updates = halve.num_updates * (rounds + 2)
  return updates * halve.batch_size * PASSES["progressive"]
