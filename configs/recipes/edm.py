"""EDM's teachers (Karras et al. 2022), and rectified flow with its U-Net."""

from typing import Any

from diffdistill.configs.recipes.consistency import PRECONDITION, SCHEDULE
from diffdistill.configs.recipes.teachers import teacher

# The times in training, and the sampler, of EDM's teachers [EDM code].
DRAW = {"kind": "lognormal", "mean": -1.2, "std": 1.2}
HEUN = {"kind": "heun", "grid": "karras", "churn": 0.0}


def edm_cifar10(config: Any, *, dropout: float, **network: Any) -> None:
  """Adds EDM's teacher for CIFAR-10, with the boundary of consistency models.

  Args:
    config: gets the model, the sampler, and the first stages as in `teacher`.
    dropout: the rate of the network, which is also that of students with
      dropout.
    network: other fields of the network that differ from EDM's.
  """
  config.model = {
    "network": {
      "kind": "song_unet",
      "channels": 128,  # [EDM code]
      "multipliers": (2, 2, 2),  # [EDM code]
      "num_blocks": 4,  # [EDM code]
      "attention": (16,),  # [EDM code]
      "embed_dim": 512,  # [EDM code]
      "dropout": dropout,
      "remat": "none",
      # Consistency compares outputs at neighbouring times, which bfloat16 would
      # round to the same number.
      "dtype": "float32",
      **network,
    },
    "schedule": SCHEDULE,
    "output": "x0",  # [EDM code]
    "precondition": PRECONDITION,
    "label_dropout": 0.0,
  }
  teacher(
    config,
    num_updates=390_625,  # 200 million images [EDM code]
    learning_rate=1e-3,  # [EDM code]
    batch_size=512,  # [EDM code]
    weight_decay=0.0,  # [EDM code]
    weighting="edm",  # [EDM code]
    warmup=19_531,  # 10 million images [EDM code]
  )
  config.stages.teacher.objective.draw = DRAW
  config.sampler = {**HEUN, "clip": False}
  config.evaluation.num_steps = (1, 2, 4, 8, 18)


def rectified_cifar10(config: Any, *, dropout: float, **network: Any) -> None:
  """Adds a teacher of rectified flow with EDM's network and budget [ours].

  Args:
    config, dropout, network: see `edm_cifar10`.
  """
  edm_cifar10(config, dropout=dropout, **network)
  config.model.schedule = {"kind": "rectified_flow"}
  config.model.output = "velocity"
  config.model.precondition = {"kind": "identity", "noise": "time"}
  objective = config.stages.teacher.objective
  objective.weighting = "snr_plus_one"
  objective.draw = {"kind": "uniform"}
  config.sampler = {"kind": "ddim", "grid": "uniform", "clip": False}
  config.evaluation.num_steps = (1, 2, 4, 8, 128)


def edm_imagenet64(
  config: Any, *, dtype: str, noise_factor: float = 0.25
) -> None:
  """Adds EDM's teacher for ImageNet at 64x64 to a config that has its network.

  Args:
    config: gets the type, the schedule, the sampler and the first stages.
    dtype: "float32", or "bfloat16" for students that compare no neighbours.
    noise_factor: see `EDMPrecondition`; the default is EDM's.
  """
  config.model.network.dtype = dtype
  config.model.schedule = SCHEDULE
  config.model.output = "x0"  # [EDM code]
  config.model.precondition = {**PRECONDITION, "noise_factor": noise_factor}
  teacher(
    config,
    num_updates=600_000,  # [ours]
    learning_rate=1e-4,  # [CM code]
    batch_size=4096,  # [CM code]
    weight_decay=0.0,  # [CM code]
    weighting="edm",  # [CM code]
  )
  config.stages.classifier.batch_size = 1024  # a multiple of 256 chips
  config.stages.teacher.objective.draw = DRAW
  config.sampler = {**HEUN, "clip": True}  # [CM code]
  config.evaluation.num_steps = (1, 2, 4, 8, 40)
