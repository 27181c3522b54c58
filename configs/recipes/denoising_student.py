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
  form: str = "difference",  # X_T - network [DS code]
  select_every: int,
) -> None:
  """Luhman & Luhman 2021: pairs of the teacher, then regression on them.

  Deviations: the loss is a mean over pixels where theirs is a sum; images are
  rounded to bytes, where theirs are cut off; our EMA has a ramp.

  Args:
    config: to which the stages "pairs" and "denoising_student" are added.
    pairs: num_steps, num_pairs, held_out, shard_size, batch_size; where they
      are needed, sampler, store_noise, max_gigabytes, path.
    optimizer: as the paper's settings for a data set.
    num_updates, batch_size: of the student.
    norm: "l1" or "l2".
    form: of the student's output: "difference" for a teacher that predicts eps,
      else "x0".
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
