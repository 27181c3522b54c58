"""scikit-learn's handwritten digits, 8x8, no download.

Two commands train and evaluate a recipe:

  make demo       digits:progressive
  make compare    digits:all

Everything is [ours]; README's results show what the recipes reach.
"""

from ml_collections import ConfigDict

from diffdistill.configs import recipes

RECIPES = {
  "progressive": "Salimans & Ho 2022, 32 -> 1 steps, minutes on 2 CPU cores",
  "long": "Salimans & Ho 2022, 32 -> 1 steps, with more than twice the updates",
  "all": "every paper from one teacher, at one budget of network passes",
  "flow_maps": "flow maps, MeanFlow and sCM from one teacher, 1 to 4 steps",
}


def get_config(recipe: str = "progressive") -> ConfigDict:
  """The config of one recipe."""
  recipes.choose(recipe, RECIPES)
  config = ConfigDict(recipes.shared(log=100, checkpoint=500))
  _describe(config)
  _teach(config)
  if recipe == "flow_maps":
    _jump(config)
  else:
    _halve(config, long=recipe == "long")
  if recipe == "all":
    _compare(config)
  recipes.proportional_warmups(config)
  return config


def _describe(config: ConfigDict) -> None:
  """Sets the data, the model and how it is judged."""
  config.evaluation.num_images = 2000
  config.evaluation.num_steps = (1, 2, 4, 8, 16, 128)
  config.data = {
    "source": {"kind": "digits", "split": "train"},
    "flip": False,
    "conditional": False,
  }
  config.model = {
    "network": recipes.small_network(32, patch=2),
    "schedule": recipes.COSINE,
    # A small network learns v faster than x0: at low noise, it would have to
    # copy many digits of x0 from its input.
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


def _teach(config: ConfigDict) -> None:
  """Adds the teacher and the classifier that judges its students."""
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


def _halve(config: ConfigDict, *, long: bool) -> None:
  """Adds the rounds of progressive distillation."""
  recipes.progressive(
    config,
    learning_rate=1e-3,
    batch_size=64,
    start_steps=32,
    num_updates=600 if long else 250,
  )
  if long:
    config.stages.teacher.num_updates = 8000
    config.stages.teacher.optimizer.ema_decay = 0.998


def _compare(config: ConfigDict) -> None:
  """Adds the stages of all other papers."""
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
  recipes.compared_jumps(
    config,
    budget=recipes.passes_of(config.stages.halve),
    batch_size=64,
    learning_rate=1e-3,
    own_rate=5e-4,
  )
  # The distance of 2,000 images is too noisy to compare papers.
  config.evaluation.num_images = 5000
  stages = config.stages
  stages.expert.num_updates = 400
  stages.expert.optimizer.learning_rate = 2e-3
  stages.denoising_student.optimizer.learning_rate = 2e-3
  # With the 32 features of a network like the judge's, the students were
  # further from the data than progressive students, so this network has 128
  # features. The terms of entropy and diversity did not help: at 1 step, the
  # distance of 2,000 images was 0.201 with them and 0.191 without.
  stages.expert.classifier = {**config.classifier.to_dict(), "channels": 64}
  stages.features.objective.dataset_weight = 0.0


def _jump(config: ConfigDict) -> None:
  """Adds the students of two times, and those of sCM."""
  recipes.compared_jumps(
    config,
    # The passes of the 1-step student of digits:progressive.
    budget=560_000,
    batch_size=64,
    learning_rate=1e-3,
    own_rate=5e-4,
    names=("flow_map", "mean_flow", "scm_distillation", "scm_training"),
  )
