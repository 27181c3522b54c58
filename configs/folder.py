"""Your own images: a folder of pictures, or one folder of pictures per class.

  diffdistill train --config=folder:progressive --workdir=runs/photos \
    --config.data.source.path=photos --config.minutes=60

A field that is auto() is chosen when the images and the device are known. train
prints the choice, and the workdir keeps it. To choose a value yourself, write
it in place of auto(), or pass --config.FIELD=VALUE. Everything is [ours].
"""

from typing import Any

from ml_collections import ConfigDict

from diffdistill.configs import recipes
from diffdistill.configs.recipes import auto

RECIPES = {
  "progressive": "own images; Salimans & Ho 2022, 32 -> 1 steps, by the clock",
  "all": "own images; four papers from one teacher, by the clock",
}


def get_config(recipe: str = "progressive") -> ConfigDict:
  """The config of one recipe."""
  recipes.choose(recipe, RECIPES)
  config = ConfigDict(recipes.shared())
  config.minutes = auto()  # the time of all stages together
  config.data = {
    "source": {"kind": "folder", "path": "photos", "split": "train"},
    "flip": True,  # write False for letters, or if left and right differ
    "conditional": auto(),  # whether models are given the classes
  }
  config.data.source.image_size = auto()  # 16, 32 or 64 pixels
  config.data.source.channels = auto()  # 3 for RGB, 1 for grey
  config.data.source.crop = "center"  # "none" squeezes wide pictures instead
  config.evaluation.num_steps = (1, 2, 4, 8, 16, 32)
  config.model = {
    "network": recipes.automatic_network(dropout=0.1),
    "schedule": recipes.COSINE,
    "output": "v",  # a small network learns v faster than x0
    "label_dropout": auto(),  # 0.1 with classes, which allows guidance
  }
  # The classifier judges generated images.
  config.classifier = recipes.automatic_classifier(dropout=0.1)
  # The call of by_the_device below replaces these values.
  settings: Any = {"batch_size": 64, "num_updates": 1000}
  recipes.teacher(
    config, learning_rate=1e-3, weight_decay=0.0, warmup=200, **settings
  )
  config.stages.teacher.optimizer.decay = "cosine"
  config.stages.teacher.optimizer.ema_decay = 0.999
  config.stages.classifier.objective.crop = 2  # shifts by up to 2 pixels
  recipes.progressive(config, learning_rate=5e-4, start_steps=32, **settings)
  if recipe == "all":
    recipes.compared_by_the_clock(config)
  # The numbers are the shares of the stages in the total minutes.
  recipes.by_the_device(config, {"classifier": 1, "teacher": 7, "halve": 4})
  return config
