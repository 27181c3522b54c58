"""Every paper from one teacher, with equal budgets: all [ours]."""

from typing import Any

from diffdistill.configs.recipes.classifier_features import classifier_features
from diffdistill.configs.recipes.denoising_student import denoising_student
from diffdistill.configs.recipes.moment_matching import (
  moment_matching,
  parameter_moment_matching,
)
from diffdistill.configs.recipes.stages import Fields
from diffdistill.configs.recipes.teachers import expert

# Denoiser passes per image and update, as the objectives count them.
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
  """Every other paper, with as many passes as the 1-step student of `halve`.

  A pass is one image forward through the denoiser; a gradient is three, and so
  is a derivative along the weights. What the classifiers, the held-out losses
  and the selecting distances take is not counted. The settings are [ours], as
  much alike as the papers allow. The numbers of updates are worked out here:
  one that is changed on the command line changes its own paper's budget.

  Args:
    config: which has the stage "halve"; all stages get its batch size.
    learning_rate: of feature distillation and the denoising student.
    moments_rate: of moment matching by turns.
    parameter_rate: of moment matching in parameter space.
    select_every: updates between scores.
    pairs: as of `denoising_student`; their passes are part of its budget.
  """
  halve = config.stages.halve
  batch_size, budget = halve.batch_size, _passes_of(halve)
  expert(config)
  # The same rounds as `halve` from its student of 8 steps on.
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


def _moments(
  config: Any,
  budget: int,
  batch_size: int,
  select_every: int,
  moments_rate: float,
  parameter_rate: float,
) -> None:
  """Both kinds of moment matching, each with the whole budget of passes."""
  moments = {
    "batch_size": batch_size,
    "select_every": select_every,
    "select_images": 1000,
    "warmup": 100,
    "ema_decay": 0.998,
    "weighting": "clipped_snr",
  }
  moment_matching(
    config,
    learning_rate=moments_rate,
    num_updates=round(budget / batch_size / PASSES["moment_matching"]),
    **moments,
  )
  parameter_moment_matching(
    config,
    learning_rate=parameter_rate,
    num_updates=round(
      budget / batch_size / PASSES["parameter_moment_matching"]
    ),
    **moments,
  )


def _passes_of(halve: Any) -> int:
  """The passes of all rounds together; the last two are twice as long."""
  rounds = halve.start_steps.bit_length() - 1
  updates = halve.num_updates * (rounds + 2)
  return updates * halve.batch_size * PASSES["progressive"]
