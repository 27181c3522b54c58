"""Both kinds of moment matching of Salimans et al. 2024."""

from typing import Any

from diffdistill.configs.recipes.stages import Fields, add_stage

# The numbers of steps of the students, for each kind of objective [ours].
NUM_STEPS = {
  "moment_matching": (8, 4, 2, 1),
  "parameter_moment_matching": (8, 4),
}
# Plain ancestral sampling with the smaller variance [MM]; clipping is [ours].
SAMPLER: Fields = {
  "kind": "ancestral",
  "grid": "uniform",
  "noise": 0.0,
  "clip": True,
}
OPTIMIZER: Fields = {
  "decay": "linear",  # [ours]
  "b1": 0.0,  # [MM]
  "b2": 0.99,  # [MM]
  "eps": 1e-12,  # [MM]
  "weight_decay": 0.0,  # [ours]
  "clip": 1.0,  # [ours]
}


def moment_matching(
  config: Any,
  kind: str = "moment_matching",
  *,
  learning_rate: float,
  num_steps: tuple[int, ...] = (),
  batch_size: int = 2048,  # [MM]
  num_updates: int = 200_000,  # the most that the paper used [MM]
  select_every: int = 5000,  # [MM]
  select_images: int = 50_000,  # [ours]
  warmup: int = 1000,  # [ours]
  ema_decay: float = 0.0,  # [ours]
) -> None:
  """Adds a stage of moment matching, Salimans et al. 2024.

  The stage is "moments", in which student and auxiliary take turns, one update
  each; or "parameter_moments", which works in parameter space and has no
  auxiliary ("instant" in the paper). Unlike the paper, which selects by FID,
  the best student is the one with the smallest distance on the run's own
  classifier. Unlike the paper, t is drawn on the sampler's grid, see
  objectives/moment_matching.py.

  Args:
    config: a config with a teacher.
    kind: the kind of the objective, a name of `NUM_STEPS`.
    learning_rate: the highest learning rate; we do not know the paper's.
    num_steps: the steps of the students, each trained from the teacher; the
      default is in `NUM_STEPS`.
    batch_size, num_updates, warmup, ema_decay: settings of each student.
    select_every: updates between two measurements of the distance.
    select_images: how many images each distance is measured on.
  """
  frozen = {"teacher": "teacher"}
  if kind == "parameter_moment_matching":
    frozen["second_moments"] = "teacher"
  add_stage(
    config,
    kind.replace("moment_matching", "moments"),
    {
      "objective": _objective(kind),
      "sampler": SAMPLER,
      "optimizer": {
        "learning_rate": learning_rate,
        "warmup": warmup,
        "ema_decay": ema_decay,
        **OPTIMIZER,
      },
      "num_updates": num_updates,
      "batch_size": batch_size,
      "frozen": frozen,
      "num_steps": num_steps or NUM_STEPS[kind],
      "select": {
        "by": "distance",
        "every": select_every,
        "num_images": select_images,
      },
    },
  )


def _objective(kind: str) -> Fields:
  """The fields of the objective, for either kind of moment matching."""
  fields: Fields = {
    "kind": kind,
    "weighting": "clipped_snr",  # [ours]; we do not know the paper's
    "times": "grid",  # [ours]; the paper draws s from all times
  }
  if kind == "parameter_moment_matching":
    fields["preconditioner"] = "adam"
  return fields
