"""scikit-learn's handwritten digits, 8x8, no download.

  make demo       digits:progressive
  make compare    digits:all

train and evaluate. Everything is [ours]; what it reaches is in README's
results.
"""

from ml_collections import ConfigDict

from diffdistill.configs import recipes

RECIPES = {
  "progressive": "Salimans & Ho 2022, 32 -> 1 steps, minutes on 2 CPU cores",
  "long": "the same with more than twice the updates",
  "all": "every paper from one teacher, at one budget of network passes",
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
    "label_dropout": 0.0,
  }
  config.classifier = {
    "kind": "resnet",
    "channels": 16,
    "multipliers": (1, 2),
    "num_blocks": 1,
    "dropout": 0.0,
  }
  recipes.teacher(
    config,
    num_updates=3000,
    learning_rate=2e-3,
    batch_size=64,
    weight_decay=0.0,
    warmup=100,
  )
  stages = config.stages
  stages.classifier.num_updates = 300
  stages.classifier.optimizer.learning_rate = 2e-3
  stages.teacher.optimizer.decay = "cosine"
  stages.teacher.optimizer.ema_decay = 0.995
  recipes.progressive(
    config,
    learning_rate=1e-3,
    batch_size=64,
    start_steps=32,
    num_updates=250,
  )
  if recipe == "long":
    stages.teacher.num_updates = 8000
    stages.teacher.optimizer.ema_decay = 0.998
    stages.halve.num_updates = 600
  if recipe == "all":
    recipes.compared(
      config,
      learning_rate=1e-3,
      moments_rate=5e-4,
      parameter_rate=2e-4,
      select_every=250,
      pairs={
        "num_steps": 16,
        "num_pairs": 12_800,
        "held_out": 512,
        "shard_size": 1280,
        "batch_size": 512,
      },
    )
    # The distance of 2,000 images is too noisy to compare papers by.
    config.evaluation.num_images = 5000
    expert = config.stages.expert
    expert.num_updates = 400
    expert.optimizer.learning_rate = 2e-3
    config.stages.denoising_student.optimizer.learning_rate = 2e-3
    # 128 features: with the judge's 32 the students were further from the data
    # than progressive ones. The terms of entropy and diversity did not help
    # either (1 step: 0.201 with and 0.191 without, of 2,000 images).
    expert.classifier = {**config.classifier.to_dict(), "channels": 64}
    config.stages.features.objective.dataset_weight = 0.0
  recipes.proportional_warmups(config)
  return config
