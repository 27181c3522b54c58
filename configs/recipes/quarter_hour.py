"""Every paper with one teacher, in a quarter of an hour on one GPU."""

from typing import Any

from diffdistill.configs.recipes.automatic import auto
from diffdistill.configs.recipes.one_gpu import (
  four_papers,
  gpu_model,
  later_papers,
)
from diffdistill.configs.recipes.stages import by_the_clock


def quarter_hour(config: Any) -> None:
  """Sets a config whose stages all end by the clock [ours].

    bash launch/one_gpu.sh --config=fashion_mnist:quarter_hour \
      --workdir=runs/quarter_hour --minutes=9.5

  Six minutes are for training, so that the programs of all papers can be
  compiled, and the students judged, in the rest of the quarter of an hour. The
  U-Net is that of the half hour with one block at each level: 8.6M parameters,
  3.5 GFLOP per image. It has two times, for the papers that jump from one time
  to another.

  Args:
    config: a config with 28x28 images, which gets its model and its stages.
  """
  config.cadence.checkpoint = 2000
  config.cadence.observe = 0
  config.evaluation.num_images = 10_000
  config.evaluation.num_steps = (1, 2, 4, 8, 16, 32)
  config.evaluation.batch_size = 1000
  config.model = gpu_model(
    num_blocks=1,
    attention=(7, 14),
    two_times=True,
    dtype=auto(),
  )
  config.classifier.channels = 32
  batch_size = 256
  four_papers(
    config,
    batch_size=batch_size,
    start_steps=32,
    select_every=500,
    pairs={
      "num_steps": 16,
      "num_pairs": 204_800,
      "held_out": 2560,
      "shard_size": 5120,
      "batch_size": 1024,
    },
  )
  later_papers(config, batch_size)
  by_the_clock(
    config,
    minutes=6.0,
    parts={
      "classifier": 0.5,
      "teacher": 4.0,
      "halve": 2.0,
      "expert": 0.5,
      "moments": 1.5,
      "pairs": 0.3,
    },
    rest=0.8,
    most=1_000_000,
  )
