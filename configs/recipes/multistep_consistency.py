"""Multistep consistency models, Heek et al. 2024."""

from typing import Any

from diffdistill.configs.recipes.stages import add_student


def multistep_consistency(
  config: Any,
  *,
  learning_rate: float,
  num_steps: tuple[int, ...] = (8, 4, 2, 1),  # [mem]
  batch_size: int = 2048,  # [mem]
  num_updates: int = 200_000,  # [mem]
  first: int = 64,  # [mem]
  last: int = 1280,  # [mem]
  warmup: int = 1000,  # [ours]
  ema_decay: float = 0.9999,  # [mem]
) -> None:
  """Adds the stage "multistep": a student for each number of segments.

  Unlike the paper, the teacher's steps are DDIM, see the objective.

  Args:
    config: a config with a teacher.
    learning_rate: the highest learning rate.
    num_steps: the steps of the students, each trained from the teacher.
    batch_size, num_updates, warmup, ema_decay: settings of each student.
    first, last: the teacher's steps over all segments, at first and from half
      of the training on.
  """
  add_student(
    config,
    "multistep",
    objective={
      "kind": "multistep_consistency",
      "weighting": "truncated_snr",  # [ours]
      "first": first,
      "last": last,
      "anneal": 0.5,  # 100,000 of 200,000 updates [mem]
      "dropout": False,  # [ours]
    },
    sampler={"kind": "ddim", "grid": "uniform", "clip": True},
    optimizer={
      "learning_rate": learning_rate,
      "warmup": warmup,
      "decay": "linear",  # [ours]
      "clip": 1.0,  # [ours]
      "ema_decay": ema_decay,
    },
    num_updates=num_updates,
    batch_size=batch_size,
    num_steps=num_steps,
  )
