"""Four papers with one teacher, in half an hour on one GPU."""

from typing import Any

from diffdistill.configs.recipes.one_gpu import four_papers, gpu_model
from diffdistill.configs.recipes.stages import by_the_clock


def half_hour(config: Any) -> None:
  """Sets a config whose stages all end by the clock [ours].

    bash launch/one_gpu.sh --workdir=runs/half_hour --minutes=9.5

  The U-Net is that of Salimans & Ho 2022 with half the channels, and two blocks
  at each level instead of three: 11.7M parameters, 6.9 GFLOP per image.
  Students have less time than in any paper. The stage "expert" trains the
  classifier that students learn from; the stage "classifier" trains the one
  that judges.
  """
  _describe(config)
  four_papers(
    config,
    batch_size=512,
    start_steps=64,
    select_every=1000,
    pairs={
      "num_steps": 32,
      "num_pairs": 512_000,
      "held_out": 5120,
      "shard_size": 10_240,
      "batch_size": 1024,
    },
  )
  by_the_clock(
    config,
    minutes=30.0,
    parts={
      "classifier": 1.5,
      "teacher": 11.0,
      "halve": 6.0,
      "expert": 1.5,
      "features": 3.0,
      "moments": 4.5,
      "pairs": 1.0,
      "denoising_student": 1.5,
    },
    most=1_000_000,
  )


def _describe(config: Any) -> None:
  """Sets the data, the model and how it is judged."""
  config.cadence.log = 50
  config.cadence.checkpoint = 1000
  config.evaluation.num_steps = (1, 2, 4, 8, 16, 32, 64, 256)
  config.evaluation.batch_size = 1000
  config.data.source = {
    "kind": "npz",
    "path": "data/cifar10_{split}.npz",
    "split": "train",
    "image_size": 32,
    "channels": 3,
    "classes": 10,
  }
  config.model = gpu_model()
  config.classifier.dtype = "bfloat16"
