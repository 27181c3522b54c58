"""Reflow, Liu et al. 2022."""

from typing import Any

from diffdistill.configs.recipes.stages import Fields, add_stage, add_student


def reflow(
  config: Any,
  *,
  pairs: Fields | str,
  learning_rate: float = 2e-4,  # [mem]
  batch_size: int = 128,  # [mem]
  num_updates: int = 300_000,  # [mem]
  warmup: int = 5000,  # [mem]
  decay: str = "constant",  # [mem]
  ema_decay: float = 0.9999,  # [ours]
  num_steps: tuple[int, ...] = (1, 2, 4, 8),  # [ours]
) -> None:
  """Adds the stage "reflow", a straightened flow, and the stage of its pairs.

  Args:
    config: a config with a teacher.
    pairs: the fields num_steps, num_pairs, held_out, shard_size and batch_size
      of "reflow_pairs", and fields that differ from their defaults; or the name
      of a stage of pairs that the config has already.
    learning_rate, batch_size, num_updates, warmup, decay, ema_decay: settings
      of the student.
    num_steps: the numbers of steps at which the student is judged.
  """
  if not isinstance(pairs, str):
    stored = {"store_noise": True, "max_gigabytes": 0.0, "path": ""}
    fields = {"kind": "pairs", **stored, **pairs}
    pairs = "reflow_pairs"
    add_stage(config, pairs, fields)
  add_student(
    config,
    "reflow",
    objective={"kind": "reflow", "draw": {"kind": "uniform"}},
    sampler={"kind": "ddim", "grid": "uniform", "clip": True},  # [ours]
    optimizer={
      "learning_rate": learning_rate,
      "warmup": warmup,
      "decay": decay,
      "clip": 1.0,  # [mem]
      "ema_decay": ema_decay,
    },
    num_updates=num_updates,
    batch_size=batch_size,
    pairs=pairs,
    num_steps=num_steps,
    select={"by": "held_out_loss", "every": 0, "patience": 0},
  )
