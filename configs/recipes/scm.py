"""Consistency models in continuous time (sCM), Lu & Song 2024."""

from typing import Any

from diffdistill.configs.recipes.consistency import renoising
from diffdistill.configs.recipes.stages import Fields, add_student


def scm(
  config: Any,
  kind: str,
  *,
  num_updates: int,
  dropout: bool,
  optimizer: Fields | None = None,
  learning_rate: float = 1e-4,  # [FG]
  batch_size: int = 512,  # [FG]
  mean: float = -1.0,  # [FG]
  std: float = 1.4,  # [FG]
  warmup: int = 10_000,  # [FG]
  num_steps: tuple[int, ...] = (1, 2),  # reported by the paper
  levels: tuple[float, ...] = (0.821,),  # [FG]
) -> None:
  """Adds a stage of sCM, which has the name of its kind.

  The numbers of [FG] are those of its own training for CIFAR-10, which follows
  the paper. Unlike the paper, the student's average has one decay.

  Args:
    config: a config with a teacher, whose weights the student begins with.
    kind: "scm_distillation" or "scm_training".
    num_updates, learning_rate, batch_size: settings of the student.
    dropout: whether the student has the network's dropout.
    optimizer: the fields of the optimizer that differ from those for CIFAR-10.
    mean, std: of log(sigma/alpha), the distribution of the times.
    warmup: the updates in which the tangent's second part grows to its size.
    num_steps: the numbers of steps at which the student is judged.
    levels: see `renoising`.
  """
  add_student(
    config,
    kind,
    objective={
      "kind": kind,
      "draw": {"kind": "lognormal", "mean": mean, "std": std},
      "warmup": warmup,
      "floor": 0.1,  # [FG]
      "dropout": dropout,
    },
    sampler=renoising(*levels),
    optimizer={
      "kind": "radam",  # [FG]
      "learning_rate": learning_rate,
      "warmup": 0,  # [FG]
      "decay": "constant",  # [FG]
      "b1": 0.9,  # [FG]
      "b2": 0.99,  # [FG]
      "weight_decay": 0.0,  # [FG]
      "clip": 0.0,  # [FG], whose limit of 1,000,000 is none
      "ema_decay": 0.9999,  # [FG], the first of its three
      **(optimizer or {}),
    },
    num_updates=num_updates,
    batch_size=batch_size,
    num_steps=num_steps,
  )
