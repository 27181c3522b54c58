"""Guidance distillation, Meng et al. 2023: both stages."""

from typing import Any

from diffdistill.configs.recipes.progressive import progressive
from diffdistill.configs.recipes.stages import add_stage


def guidance_distillation(
  config: Any,
  *,
  told: tuple[float, float] = (0.0, 4.0),  # [mem]
  learning_rate: float = 1e-4,  # [PD code]
  batch_size: int = 2048,  # [PD code]
  num_updates: int = 100_000,  # [ours]
  ema_decay: float = 0.0,  # [PD code]
  start_steps: int = 1024,  # [PD], section 5.2
) -> None:
  """Adds the stages "guided" and "halve": a student that is told w, in 1 step.

  We could read only the abstract of the paper. Its second stage is progressive
  distillation, so its settings are those of Salimans & Ho 2022.

  Args:
    config: a config with a teacher, whose network needs told_guidance=True, and
      whose model needs a label_dropout.
    told: the lowest and the highest guidance weight of the student.
    learning_rate, batch_size: settings of both stages.
    num_updates, ema_decay: settings of the stage "guided".
    start_steps: the number of steps that the stage "halve" begins with.
  """
  add_stage(
    config,
    "guided",
    {
      "objective": {
        "kind": "guidance_distillation",
        "told": told,
        "weighting": "truncated_snr",  # [PD code]
        "draw": {"kind": "uniform"},  # [mem]
      },
      "optimizer": {
        "learning_rate": learning_rate,
        "warmup": 0,  # [PD code]
        "decay": "linear",  # [PD], section 5.2
        "weight_decay": 0.0,  # [PD code]
        "clip": 1.0,  # [PD code]
        "ema_decay": ema_decay,
      },
      "num_updates": num_updates,
      "batch_size": batch_size,
      "frozen": {"teacher": "teacher"},
      "num_steps": (start_steps,),
    },
  )
  progressive(
    config,
    learning_rate=learning_rate,
    batch_size=batch_size,
    start_steps=start_steps,
    teacher="guided",
    told=told,
  )
