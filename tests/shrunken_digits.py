"""A small form of the recipe digits:all: few, fast updates of each stage.

The run has no students of `compared_jumps`, because they would double the time
of the tests that kill a run. tests/objectives trains and resumes each of them.
"""

from diffdistill.configs import digits

UPDATES = 12


def get_config():
  """Gives each round six checkpoints, scores, and a record for every update."""
  config = digits.get_config("all")
  config.run = config.run[: config.run.index("denoising_student") + 1]
  network = {"kind": "mlp", "width": 8, "depth": 1, "two_times": True}
  config.model.network = network
  config.classifier.update(channels=8)
  config.stages.expert.classifier = config.classifier.to_dict()
  config.cadence.update(log=1, checkpoint=2)
  config.evaluation.update(num_images=60, batch_size=30, gap_images=20)
  config.evaluation.num_steps = (1, 2, 4)
  config.stages.pairs.update(num_steps=4, num_pairs=64, held_out=16)
  config.stages.pairs.update(shard_size=16, batch_size=16)
  for name in config.run:
    stage = config.stages[name]
    if name == "pairs":
      continue
    stage.update(num_updates=UPDATES, batch_size=8)
    if "warmup" in stage.optimizer:
      stage.optimizer.warmup = 2
    if "num_steps" in stage:
      stage.num_steps = (2,)
    if "select" in stage:
      stage.select.every = 4
      if "num_images" in stage.select:
        stage.select.num_images = 60
  # The classifier judges the models, so it must be better than chance.
  judge = config.stages.classifier
  judge.update(num_updates=60, batch_size=64)
  judge.optimizer.learning_rate = 1e-2
  config.stages.halve.start_steps = 4
  config.stages.features.start_steps = 2
  config.stages.features.frozen.teacher = "halve/002"
  return config
