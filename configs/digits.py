"""scikit-learn's handwritten digits, 8x8, no download.

  make demo

is train and evaluate on configs/digits.py:progressive. Everything is [ours];
what it reaches is in README's results.
"""

from ml_collections import ConfigDict

from configs import recipes

RECIPES = {
  "progressive": "Salimans & Ho 2022, 32 -> 1 steps, minutes on 2 CPU cores",
  "long": "the same with more than twice the updates",
}


def get_config(recipe: str = "progressive") -> ConfigDict:
  """The recipe of that name."""
  recipes.choose(recipe, RECIPES)
  config = ConfigDict(recipes.shared(log=100, checkpoint=500))
  config.evaluation.num_images = 2000
  config.evaluation.num_steps = (1, 2, 4, 8, 16, 128)
  config.data = {
    "source": {"kind": "digits", "split": "train"},
    "flip": False,
    "conditional": False,
  }
  config.model = {
    "network": {
      "kind": "unet",
      "style": "film",
      "channels": 32,
      "multipliers": (1,),
      "num_blocks": 2,
      "patch": 2,
      "attention": (),
      "dropout": 0.0,
    },
    "schedule": {"kind": "cosine", "logsnr_min": -20.0, "logsnr_max": 20.0},
    # A small network learns v faster than x0, which at low noise it would have
    # to copy from its input to many digits.
    "output": "v",
  }
  config.classifier = {
    "kind": "resnet",
    "channels": 16,
    "multipliers": (1, 2),
    "num_blocks": 1,
    "dropout": 0.0,
  }
  recipes.progressive(
    config,
    teacher_updates=3000,
    teacher_rate=2e-3,
    student_rate=1e-3,
    batch_size=64,
    weight_decay=0.0,
    start_steps=32,
  )
  stages = config.stages
  stages.classifier.num_updates = 300
  stages.classifier.optimizer.learning_rate = 2e-3
  stages.teacher.optimizer.warmup = 100
  stages.teacher.optimizer.decay = "cosine"
  stages.teacher.optimizer.ema_decay = 0.995
  stages.halve.num_updates = 250
  if recipe == "long":
    stages.teacher.num_updates = 8000
    stages.teacher.optimizer.ema_decay = 0.998
    stages.halve.num_updates = 600
  return config
