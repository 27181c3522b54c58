"""All papers with one teacher, in half an hour on one GPU."""

from typing import Any

from diffdistill.configs.recipes.classifier_features import classifier_features
from diffdistill.configs.recipes.denoising_student import denoising_student
from diffdistill.configs.recipes.moment_matching import moment_matching
from diffdistill.configs.recipes.progressive import progressive
from diffdistill.configs.recipes.stages import by_the_clock
from diffdistill.configs.recipes.teachers import COSINE, expert, teacher


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
  _teach_on_features(config)
  _teach_on_images(config)
  for name in ("classifier", "expert"):
    stage = config.stages[name]
    stage.batch_size = 512
    stage.objective.crop = 4
    stage.optimizer.weight_decay = 0.05
  config.stages.teacher.optimizer.decay = "linear"
  config.stages.teacher.optimizer.ema_decay = 0.999
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
  config.model = {
    "network": {
      "kind": "unet",
      "style": "film",
      "channels": 128,
      "multipliers": (1, 1, 1),
      "num_blocks": 2,
      "patch": 1,
      "attention": (8, 16),
      "num_heads": 1,
      "embed_dim": 512,
      "dropout": 0.1,
      "remat": "none",
      "dtype": "bfloat16",
    },
    "schedule": COSINE,
    # The output is not x0: at low noise x0 is nearly the input, which a network
    # in bfloat16 cannot copy exactly.
    "output": "v",
    "label_dropout": 0.0,
  }
  config.classifier.dtype = "bfloat16"


def _teach_on_features(config: Any) -> None:
  """Adds the teacher, halving rounds, and students that match features."""
  teacher(
    config,
    num_updates=1,
    learning_rate=8e-4,
    batch_size=512,
    weight_decay=0.0,
    warmup=200,
  )
  progressive(config, learning_rate=4e-4, batch_size=512, start_steps=64)
  expert(config)
  classifier_features(
    config,
    classifier="expert",
    learning_rate=2e-4,
    batch_size=512,
    decay="linear",
  )


def _teach_on_images(config: Any) -> None:
  """Adds the students of moment matching and the denoising student."""
  moment_matching(
    config,
    learning_rate=2e-4,
    num_steps=(8, 4),
    batch_size=512,
    select_every=1000,
    select_images=5000,
    warmup=100,
    ema_decay=0.998,
  )
  denoising_student(
    config,
    pairs={
      "num_steps": 32,
      "num_pairs": 512_000,
      "held_out": 5120,
      "shard_size": 10_240,
      "batch_size": 1024,
    },
    optimizer={
      "learning_rate": 4e-4,
      "warmup": 100,
      "decay": "linear",
      "b1": 0.9,
      "b2": 0.98,  # [DS code]
      "ema_decay": 0.995,  # [DS code]
    },
    num_updates=1,
    batch_size=512,
    norm="l1",  # [DS code]
    form="x0",
    select_every=500,
  )
