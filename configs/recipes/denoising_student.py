"""The denoising student, Luhman & Luhman 2021."""

from typing import Any

from diffdistill.configs.recipes.stages import Fields, add_stage


def denoising_student(
  config: Any,
  *,
  pairs: Fields,
  optimizer: Fields,
  num_updates: int,
  batch_size: int,
  norm: str,
  form: str = "difference",  # the image is X_T minus the output [DS code]
  select_every: int,
) -> None:
  """Adds "pairs" and "denoising_student": regression, Luhman & Luhman 2021.

  Unlike the paper, the loss is a mean over pixels, not a sum; images are
  rounded to bytes, not cut off; and the EMA has a ramp.

  Args:
    config: a config with a teacher.
    pairs: the fields num_steps, num_pairs, held_out, shard_size and batch_size
      of the stage "pairs", and fields that differ from their defaults.
    optimizer: fields of the student's optimizer, which differ by data set.
    num_updates, batch_size: settings of the student.
    norm: "l1" or "l2".
    form: what the student's network predicts: "difference" if the teacher
      predicts eps, otherwise "x0".
    select_every: updates between held-out losses; the best student is kept.
  """
  stored = {"store_noise": True, "max_gigabytes": 0.0, "path": ""}
  add_stage(config, "pairs", {"kind": "pairs", **stored, **pairs})
  add_stage(
    config,
    "denoising_student",
    {
      "objective": {"kind": "denoising_student", "norm": norm},
      "sampler": {"kind": "one_step", "form": form, "clip": True},
      "optimizer": {
        "decay": "constant",  # [DS code]
        "eps": 1e-8,  # [DS code]
        "weight_decay": 0.0,  # [DS code]
        "clip": 0.0,  # [DS code]
        **optimizer,
      },
      "num_updates": num_updates,
      "batch_size": batch_size,
      "frozen": {"teacher": "teacher"},
      "pairs": "pairs",
      "select": {"by": "held_out_loss", "every": select_every, "patience": 0},
    },
  )
