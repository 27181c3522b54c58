"""Progressive distillation, Salimans & Ho 2022."""

from typing import Any

from diffdistill.configs.recipes.stages import add_stage


def progressive(
  config: Any,
  *,
  learning_rate: float,
  batch_size: int,
  start_steps: int,
  end_steps: int = 1,  # [PD], section 5.2
  num_updates: int = 50_000,  # [PD], section 5.2
  decay: str = "linear",  # to zero over each round [PD], section 5.2
) -> None:
  """Salimans & Ho 2022: rounds of halving.

  Deviations: ours anneals the learning rate as the paper says, which the
  released code leaves to its caller; and see `teacher`.

  Args:
    config: to which the stage "halve" is added.
    learning_rate, batch_size: of Adam [PD code].
    start_steps: the teacher's before the first halving [PD], section 5.2.
    end_steps: the last student's.
    num_updates: of a round.
    decay: of the learning rate.
  """
  add_stage(
    config,
    "halve",
    {
      "objective": {"kind": "progressive", "weighting": "truncated_snr"},
      "optimizer": {
        "learning_rate": learning_rate,
        "warmup": 0,  # [PD code]
        "decay": decay,
        "weight_decay": 0.0,  # [PD code]
        "clip": 1.0,  # [PD code]
        "ema_decay": 0.0,  # [PD code]
      },
      # Doubled for the 2-step and 1-step students [PD], section 5.2.
      "num_updates": num_updates,
      "long_rounds": 2,
      "batch_size": batch_size,
      "frozen": {"teacher": "teacher"},
      "start_steps": start_steps,
      "end_steps": end_steps,
    },
  )
