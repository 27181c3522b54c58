"""Moment matching, Salimans et al. 2024, of both kinds."""

from typing import Any

from diffdistill.configs.recipes.stages import Fields, add_stage


def moment_matching(
  config: Any,
  *,
  learning_rate: float,
  num_steps: tuple[int, ...] = (8, 4, 2, 1),  # [ours]
  batch_size: int = 2048,  # [MM]
  num_updates: int = 200_000,  # [MM], at most
  select_every: int = 5000,  # [MM]
  select_images: int = 50_000,  # [ours]
  warmup: int = 1000,  # [ours]
  ema_decay: float = 0.0,  # [ours]
  weighting: str = "clipped_snr",  # [ours]; the paper's is not known to us
  times: str = "grid",  # [ours]; the paper draws s from all times
) -> None:
  """Salimans et al. 2024, alternating: student and auxiliary by turns.

  An update is one turn, of the auxiliary or of the student. Deviations: the
  best student is chosen by the distance on this run's classifier, where the
  paper uses FID; t is drawn on the sampler's grid, see
  objectives/moment_matching.py.

  Args:
    config: to which the stage "moments" is added.
    learning_rate: the paper's is not known to us.
    num_steps: of the students, each trained by itself from the teacher.
    batch_size, num_updates: of each student.
    select_every: updates between distances; the best student is kept.
    select_images: per distance.
    warmup, ema_decay, weighting, times: see there.
  """
  add_stage(
    config,
    "moments",
    _moments(
      {"kind": "moment_matching", "weighting": weighting, "times": times},
      frozen={"teacher": "teacher"},
      learning_rate=learning_rate,
      num_steps=num_steps,
      batch_size=batch_size,
      num_updates=num_updates,
      select_every=select_every,
      select_images=select_images,
      warmup=warmup,
      ema_decay=ema_decay,
    ),
  )


def parameter_moment_matching(
  config: Any,
  *,
  learning_rate: float,
  num_steps: tuple[int, ...] = (8, 4),  # [ours]
  batch_size: int = 2048,  # [MM]
  num_updates: int = 200_000,  # [MM], at most
  select_every: int = 5000,  # [MM]
  select_images: int = 50_000,  # [ours]
  warmup: int = 1000,  # [ours]
  ema_decay: float = 0.0,  # [ours]
  weighting: str = "clipped_snr",  # [ours]
  times: str = "grid",  # [ours]
) -> None:
  """Salimans et al. 2024, in parameter space ("instant"): no auxiliary.

  Arguments and deviations as of `moment_matching`; the stage is
  "parameter_moments".
  """
  add_stage(
    config,
    "parameter_moments",
    _moments(
      {
        "kind": "parameter_moment_matching",
        "weighting": weighting,
        "times": times,
        "preconditioner": "adam",
      },
      frozen={"teacher": "teacher", "second_moments": "teacher"},
      learning_rate=learning_rate,
      num_steps=num_steps,
      batch_size=batch_size,
      num_updates=num_updates,
      select_every=select_every,
      select_images=select_images,
      warmup=warmup,
      ema_decay=ema_decay,
    ),
  )


def _moments(
  objective: Fields,
  *,
  frozen: Fields,
  learning_rate: float,
  num_steps: tuple[int, ...],
  batch_size: int,
  num_updates: int,
  select_every: int,
  select_images: int,
  warmup: int,
  ema_decay: float,
) -> Fields:
  """A stage of either kind of moment matching."""
  return {
    "objective": objective,
    # Plain ancestral sampling, with the smaller variance [MM]; the clipping is
    # [ours].
    "sampler": {
      "kind": "ancestral",
      "grid": "uniform",
      "noise": 0.0,
      "clip": True,
    },
    "optimizer": {
      "learning_rate": learning_rate,
      "warmup": warmup,
      "decay": "linear",  # [ours]
      "b1": 0.0,  # [MM]
      "b2": 0.99,  # [MM]
      "eps": 1e-12,  # [MM]
      "weight_decay": 0.0,  # [ours]
      "clip": 1.0,  # [ours]
      "ema_decay": ema_decay,
    },
    "num_updates": num_updates,
    "batch_size": batch_size,
    "frozen": frozen,
    "num_steps": num_steps,
    "select": {
      "by": "distance",
      "every": select_every,
      "num_images": select_images,
    },
  }
