"""Fashion-MNIST, 28x28: clothes, on two CPU cores in about an hour.

The recipe `quarter_hour` is for one GPU: see recipes/quarter_hour.py.

  sudo apt install dataset-fashion-mnist
  diffdistill train --config=fashion_mnist:progressive --workdir=runs/fashion
  diffdistill evaluate --workdir=runs/fashion

Everything is [ours]; README's results show what the recipes reach.
"""

from ml_collections import ConfigDict

from diffdistill.configs import recipes

RECIPES = {
  "progressive": "Salimans & Ho 2022, 32 -> 1 steps, an hour on 2 CPU cores",
  "all": "every paper from one teacher, at one budget of network passes",
  "quarter_hour": (
    "every paper from one teacher in 15 minutes on one GPU, a U-Net of 8.6M"
  ),
}


def get_config(recipe: str = "progressive") -> ConfigDict:
  """The config of one recipe."""
  recipes.choose(recipe, RECIPES)
  config = ConfigDict(recipes.shared(log=50, checkpoint=250, observe=1000))
  _describe(config)
  if recipe == "quarter_hour":
    recipes.quarter_hour(config)
    return config
  _teach(config)
  recipes.progressive(
    config,
    learning_rate=5e-4,
    batch_size=64,
    start_steps=32,
    num_updates=250,
  )
  if recipe == "all":
    _compare(config)
  recipes.proportional_warmups(config)
  return config


def _describe(config: ConfigDict) -> None:
  """Sets the data, the model and how it is judged."""
  config.evaluation.num_images = 2000
  config.evaluation.num_steps = (1, 2, 4, 8, 16, 32, 64)
  config.data = {
    "source": {
      "kind": "idx",
      # Debian's package installs the files in this folder.
      "path": "/usr/share/datasets/fashion-mnist",
      "split": "train",
    },
    "flip": False,
    "conditional": False,
  }
  config.model = {
    "network": recipes.small_network(64, patch=4),
    "schedule": recipes.COSINE,
    "output": "v",  # a small network learns v faster than x0
    "label_dropout": 0.0,
  }
  config.classifier = {
    "kind": "resnet",
    "channels": 16,
    "multipliers": (1, 2, 4),
    "num_blocks": 1,
    "dropout": 0.1,
  }


def _teach(config: ConfigDict) -> None:
  """Adds the teacher and the classifier that judges its students."""
  recipes.teacher(
    config,
    num_updates=4000,
    learning_rate=1e-3,
    batch_size=64,
    weight_decay=0.0,
    warmup=200,
  )
  stages = config.stages
  stages.classifier.num_updates = 1000
  stages.classifier.batch_size = 64
  stages.teacher.optimizer.decay = "cosine"
  stages.teacher.optimizer.ema_decay = 0.995


def _compare(config: ConfigDict) -> None:
  """Adds the stages of all other papers."""
  recipes.compared(
    config,
    learning_rate=5e-4,
    moments_rate=5e-4,
    parameter_rate=2e-4,
    select_every=250,
    pairs={
      "num_steps": 16,
      "num_pairs": 12_800,
      "held_out": 512,
      "shard_size": 1280,
      "batch_size": 256,
    },
  )
  recipes.compared_jumps(
    config,
    budget=recipes.passes_of(config.stages.halve),
    batch_size=64,
    learning_rate=5e-4,
    own_rate=2.5e-4,
  )
  config.stages.expert.num_updates = 1000
  config.stages.expert.batch_size = 64
