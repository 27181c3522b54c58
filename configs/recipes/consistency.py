"""Consistency models: Song et al. 2023, and Geng et al. 2024."""

from typing import Any

from diffdistill.configs.recipes.stages import Fields, add_student

# The preconditioning of EDM with the boundary of consistency models: at the
# lowest noise level the output is the input [CM code].
PRECONDITION: Fields = {
  "kind": "edm",
  "sigma_data": 0.5,  # [CM code]
  "boundary": True,  # [CM code]
}
SCHEDULE: Fields = {
  "kind": "edm",
  "sigma_min": 0.002,  # [CM code]
  "sigma_max": 80.0,  # [CM code]
}


def renoising(*levels: float) -> Fields:
  """The sampler of consistency models, from sigma/alpha = 80 [CM code].

  Args:
    levels: the noise levels after the first step, for this many steps and one.
  """
  return {
    "kind": "renoising",
    "grid": "karras",
    "levels": levels,
    "clip": True,  # [ours]
  }


def _radam(learning_rate: float, ema_decay: float, warmup: int = 0) -> Fields:
  """RAdam at a constant rate, without weight decay or clipping.

  For [ECT code] the constant rate without warm-up is [ours].
  """
  return {
    "kind": "radam",
    "learning_rate": learning_rate,
    "warmup": warmup,
    "decay": "constant",
    "weight_decay": 0.0,
    "clip": 0.0,
    "ema_decay": ema_decay,
  }


def consistency_distillation(
  config: Any,
  *,
  learning_rate: float = 4e-4,  # [CM code]
  batch_size: int = 512,  # [CM code]
  num_updates: int = 800_000,  # [CM code]
  warmup: int = 19_531,  # 10 million images [CM code]
  ema_decay: float = 0.9999,  # [CM code]
  steps: int = 17,  # between 18 noise levels [CM code]
  huber: float = 0.00054,  # [mem]: Song & Dhariwal 2023
  target_decay: float = 0.0,  # [mem]
  num_steps: tuple[int, ...] = (1, 2),  # reported by the paper
  levels: tuple[float, ...] = (0.821,),  # [FG]
) -> None:
  """Adds the stage "consistency": distillation, Song et al. 2023.

  Unlike the paper, whose error is LPIPS, ours is the pseudo-Huber error of Song
  & Dhariwal 2023.

  Args:
    config: a config with a teacher.
    learning_rate, batch_size, num_updates, warmup, ema_decay: settings of the
      student, whose defaults are those for CIFAR-10.
    steps: the number of steps of the grid of times.
    huber: c / sqrt(d) of the error.
    target_decay: the decay of the average that is the target; 0 for none.
    num_steps: the numbers of steps at which the student is judged.
    levels: see `renoising`.
  """
  add_student(
    config,
    "consistency",
    objective={
      "kind": "consistency_distillation",
      "solver": "heun",  # [CM code]
      "weighting": "constant",  # [CM code]
      "huber": huber,
      "target_decay": target_decay,
      "dropout": False,  # [CM code]
      "neighbours": {
        "kind": "even",  # all steps are equally likely [CM code]
        "curve": "karras",  # [CM code]
        "first": steps,
        "last": steps,
      },
    },
    sampler=renoising(*levels),
    optimizer={
      **_radam(learning_rate, ema_decay, warmup),  # [CM code]
      "b1": 0.9,  # [CM code]
      "eps": 1e-8,  # [CM code]
    },
    num_updates=num_updates,
    batch_size=batch_size,
    num_steps=num_steps,
  )


def easy_consistency(
  config: Any,
  *,
  learning_rate: float = 1e-4,  # [ECT code]
  batch_size: int = 128,  # [ECT code]
  num_updates: int = 200_000,  # 25.6 million images [ECT code]
  ema_decay: float = 0.9999,  # [ECT code]
  q: float = 2.0,  # [ECT code]
  stages: int = 8,  # one doubling in each 3.2 million images [ECT code]
  mean: float = -1.1,  # [ECT code]
  std: float = 2.0,  # [ECT code]
  huber: float = 0.0,  # [ECT code]
  num_steps: tuple[int, ...] = (1, 2),  # reported by the paper
  levels: tuple[float, ...] = (0.821,),  # [FG]
) -> None:
  """Adds the stage "easy_consistency": training from data, Geng et al. 2024.

  Args:
    config: a config with a teacher, whose weights the student starts with.
    learning_rate, batch_size, num_updates, ema_decay: settings of the student,
      whose defaults are those for CIFAR-10.
    q, stages: the gap of neighbouring times, see diffusion/neighbours.py.
    mean, std: of log(sigma), the distribution of the times.
    huber: c / sqrt(d) of the error.
    num_steps: the numbers of steps at which the student is judged.
    levels: see `renoising`.
  """
  add_student(
    config,
    "easy_consistency",
    objective={
      "kind": "consistency_training",
      "from_teacher": True,  # [ECT code]
      "weighting": "edm",  # [ECT code]
      "huber": huber,
      "target_decay": 0.0,  # [ECT code]
      "dropout": True,  # [ECT code]
      "neighbours": {
        "kind": "ratio",
        "q": q,
        "stages": stages,
        "k": 8.0,  # [ECT code]
        "b": 1.0,  # [ECT code]
        "least": 0.0,  # [ECT code]
        "draw": {"kind": "lognormal", "mean": mean, "std": std},
      },
    },
    sampler=renoising(*levels),
    optimizer=_radam(learning_rate, ema_decay),  # [ECT code]
    num_updates=num_updates,
    batch_size=batch_size,
    num_steps=num_steps,
  )
