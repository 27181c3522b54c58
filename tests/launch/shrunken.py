"""A small config in place of the half-hour config of CIFAR-10, for a CPU."""

import os

from diffdistill.configs import cifar10


def get_config(minutes="0.5"):
  """The config with tiny networks, small batches and few images of colours."""
  config = cifar10.get_config("half_hour")
  config.minutes = float(minutes)
  config.data.source.path = os.environ["SHRUNKEN_DATA"]
  config.model.network.channels = 8
  config.model.network.multipliers = (1,)
  config.model.network.num_blocks = 1
  config.model.network.attention = ()
  config.model.network.embed_dim = 16
  config.model.network.patch = 4
  config.classifier.channels = 8
  config.classifier.multipliers = (1,)
  config.classifier.num_blocks = 1
  for stage in config.stages.values():
    stage.batch_size = 16
    if stage.get("kind") == "pairs":
      stage.update(num_pairs=512, held_out=32, shard_size=64)
    elif "every" in stage.get("select", {}) and stage.select.every:
      stage.select.update(every=20)
      if "num_images" in stage.select:
        stage.select.num_images = 100
  config.stages.classifier.optimizer.update(learning_rate=1e-2, warmup=0)
  config.cadence.update(log=10, checkpoint=20)
  config.evaluation.update(num_images=100, batch_size=50, gap_images=20)
  config.evaluation.num_steps = (1, 2, 4, 8, 16)
  return config
