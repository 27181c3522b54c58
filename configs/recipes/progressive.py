"""Progressive distillation, Salimans & Ho 2022."""

from typing import Any

from diffdistill.configs.recipes.stages import Fields, add_stage


def progressive(
  config: Any,
  *,
  learning_rate: float,
  batch_size: int,
  start_steps: int,
  end_steps: int = 1,  # [PD], section 5.2
  num_updates: int = 50_000,  # [PD], section 5.2
  decay: str = "linear",  # learning rate falls to 0 in each round [PD], 5.2
  teacher: str = "teacher",
  told: tuple[float, ...] = (),
) -> None:
  """Adds the stage "halve": rounds of halving, Salimans & Ho 2022.

  The learning rate is annealed as the paper says; the released code leaves that
  to its caller. The deviations that `teacher` states apply here too.

  Args:
    config: a config with a teacher.
    learning_rate, batch_size: settings of each round, which differ by data set
      [PD code].
    start_steps: the steps of the first teacher [PD], section 5.2.
    end_steps: the steps of the last student.
    num_updates: the updates of each round.
    decay: how the learning rate falls in each round.
    teacher: the stage of the first teacher.
    told: the range of guidance weights that this teacher is told, if any.
  """
  objective: Fields = {"kind": "progressive", "weighting": "truncated_snr"}
  if told:
    objective["told"] = told
  add_stage(
    config,
    "halve",
    {
      "objective": objective,
      "optimizer": {
        "learning_rate": learning_rate,
        "warmup": 0,  # [PD code]
        "decay": decay,
        "weight_decay": 0.0,  # [PD code]
        "clip": 1.0,  # [PD code]
        "ema_decay": 0.0,  # [PD code]
      },
      # The students of 2 steps and 1 step get twice as many updates [PD], 5.2.
      "num_updates": num_updates,
      "long_rounds": 2,
      "batch_size": batch_size,
      "frozen": {"teacher": teacher},
      "start_steps": start_steps,
      "end_steps": end_steps,
    },
  )
