"""Score identity distillation (SiD): Zhou et al. 2024."""

from typing import Any

from diffdistill.configs.recipes.edm import edm_cifar10
from diffdistill.configs.recipes.stages import add_student


def score_identity(
  config: Any,
  *,
  first_time: float,
  learning_rate: float = 1e-5,  # [SiD code]
  batch_size: int = 256,  # [SiD code]
  num_updates: int = 3_906_250,  # 500 million images, by turns [SiD code]
  warmup: int = 0,  # [SiD code]
  decay: str = "constant",  # [SiD code]
  clip: float = 0.0,  # [SiD code]
  ema_decay: float = 0.999645,  # halves in 500,000 images [SiD code]
  slack: float = 1.2,  # [SiD code]
) -> None:
  """Adds the stage "score_identity": SiD without an adversarial term.

  Args:
    config: a config with a teacher.
    first_time: the time at which sigma/alpha is 2.5, where the student starts
      [SiD code].
    learning_rate, batch_size, num_updates, warmup, decay, clip, ema_decay:
      settings of student and critic, whose defaults are those for CIFAR-10.
    slack: the alpha of the paper.
  """
  add_student(
    config,
    "score_identity",
    objective={
      "kind": "score_identity",
      "slack": slack,
      "draw": {"kind": "karras", "least": 0.0, "most": 0.8},  # [SiD code]
      "critic_draw": {  # [SiD code]
        "kind": "lognormal",
        "mean": -1.2,
        "std": 1.2,
      },
      "weighting": "edm",  # [SiD code]
      "dropout": False,  # [ours]
    },
    sampler={
      "kind": "one_step",
      "form": "x0",
      "first_time": first_time,
      "clip": True,  # [ours]
    },
    optimizer={
      "learning_rate": learning_rate,
      "b1": 0.0,  # [SiD code]
      "b2": 0.999,  # [SiD code]
      "warmup": warmup,
      "decay": decay,
      "weight_decay": 0.0,  # [SiD code]
      "clip": clip,
      "ema_decay": ema_decay,
    },
    num_updates=num_updates,
    batch_size=batch_size,
  )


def score_identity_cifar10(config: Any) -> None:
  """Adds EDM's teacher for CIFAR-10, and its student of one step."""
  edm_cifar10(config, dropout=0.13)  # [EDM code]
  config.model.precondition = {"kind": "edm", "sigma_data": 0.5}  # [EDM code]
  # On EDM's schedule, sigma is 2.5 at this time.
  score_identity(config, first_time=0.49932)
