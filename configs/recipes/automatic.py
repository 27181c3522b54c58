"""Fields that are chosen when the images and the device are known [ours].

A config is made before the images, the device or the minutes are known. So a
field says "auto", and run/automatic.py puts a value in its place.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import FieldReference

from diffdistill.configs.recipes.compared import compared
from diffdistill.configs.recipes.stages import Fields

# The clock ends a round long before it has this many updates.
MOST = 1_000_000


def auto() -> Any:
  """A field that is chosen when the run begins; any value can replace it."""
  # `object` lets the command line and a notebook set a value of any type.
  return FieldReference("auto", field_type=object)


def by_the_device(
  config: Any, shares: Mapping[str, int | float], rest: int | float = 1
) -> None:
  """Ends every stage by the clock, with sizes that suit the device.

  Args:
    config: has all its stages; config.minutes is their total time, without
      compiling.
    shares: the relative length of each stage.
    rest: the relative length of each stage that `shares` does not name.
  """
  config.shares = {name: shares.get(name, rest) for name in config.run}
  with config.ignore_type():
    for name in ("log", "checkpoint", "observe"):
      config.cadence[name] = auto()
    config.evaluation.num_images = auto()
    for name in config.run:
      stage = config.stages[name]
      stage.minutes, stage.batch_size = auto(), auto()
      if stage.get("kind") == "pairs":
        for field in ("num_pairs", "held_out", "shard_size"):
          stage[field] = auto()
        continue
      stage.num_updates = MOST
      if stage.objective.kind == "denoising":
        stage.enough_updates = auto()
      select = stage.get("select", {})
      if select.get("by") == "distance" and select.every:
        select.every = auto()


def automatic_network(*, dropout: float) -> Fields:
  """The U-Net of Salimans & Ho 2022, in a size that suits images and device."""
  return {
    "kind": "unet",
    "style": "film",
    "channels": auto(),
    "multipliers": auto(),
    "num_blocks": 2,
    "patch": auto(),
    "attention": auto(),
    "dropout": dropout,
    "remat": "none",
    "dtype": auto(),
  }


def automatic_classifier(*, dropout: float) -> Fields:
  """The classifier that judges; none if it could not be trusted."""
  return {
    "kind": auto(),
    "channels": auto(),
    "multipliers": (1, 2, 4),
    "num_blocks": 1,
    "dropout": dropout,
  }


def compared_by_the_clock(config: Any) -> None:
  """Adds the stages of three other papers; call `by_the_device` after it.

  In `compared`, all students have as many passes as the stage "halve". Here,
  each stage has its share of the minutes.
  """
  compared(
    config,
    learning_rate=5e-4,
    moments_rate=5e-4,
    parameter_rate=2e-4,
    select_every=250,
    pairs={
      "num_steps": 16,
      "num_pairs": 1,
      "held_out": 1,
      "shard_size": 1,
      "batch_size": 1,
    },
  )
