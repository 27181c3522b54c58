"""How fast a stage trains: the whole loop against its bare compiled update.

Both run in one process and take turns on the same stage: the loop as `train`
runs it, with data, logging and checkpoints, and the bare update, called again
and again on one batch. Their ratio is taken turn by turn, so that a machine
whose speed drifts is compared with itself.
"""

import dataclasses
import tempfile
import time
from typing import Any

import jax
import numpy as np
from etils import epath

from diffdistill.arrays import Params
from diffdistill.experiment import Experiment
from diffdistill.training.curriculum import Round, Stage
from diffdistill.training.report import Report
from diffdistill.training.sharding import replicated, shard_batch
from diffdistill.training.trainer import StageFunctions, Trainer


class Turns:
  """An observer of the loop that runs the bare update whenever it is shown."""

  def __init__(self, run: Experiment, stage: Stage, functions: StageFunctions):
    key = jax.random.key(run.seed)
    batch = run.batches(stage.batch_size, run.seed).batch(0)
    hparams = {"num_steps": np.int32(0), "learning_rate": np.float32(0)}
    self._update = functions.updates[stage.objective.trains[0]]
    self._state = functions.init(key, {})
    self._inputs = (
      shard_batch(batch, run.mesh),
      *jax.device_put((key, hparams), replicated(run.mesh)),
    )
    self._bare(1)
    self._last_step = 0
    self._left = 0.0
    self.loop: list[float] = []
    self.bare: list[float] = []

  def __call__(
    self, stage: Stage, round_: Round, params: Params, step: int
  ) -> None:
    """Times the updates since the last turn, then as many bare ones."""
    jax.block_until_ready(params)
    seconds, updates = time.monotonic() - self._left, step - self._last_step
    # The first turn holds the compilation.
    if self._left:
      self.loop.append(seconds / updates)
      self.bare.append(self._bare(updates) / updates)
    self._last_step = step
    self._left = time.monotonic()

  def _bare(self, updates: int) -> float:
    start = time.monotonic()
    for _ in range(updates):
      self._state, _ = self._update(self._state, {}, *self._inputs)
    jax.block_until_ready(self._state)
    return time.monotonic() - start


def benchmark(
  run: Experiment, name: str, num_updates: int, turns: int
) -> dict[str, Any]:
  """Times the stage called `name`, logging and saving once a turn or more.

  Args:
    run: the recipe.
    name: of a stage that needs no earlier stage's weights.
    num_updates: of each turn.
    turns: how many are timed.

  Raises:
    ValueError: for a stage that is not there or needs earlier weights.
  """
  free = {s.name: s for s in run.stages if not s.frozen}
  if name not in free:
    raise ValueError(
      f"stage is {name!r}; pass one that needs no earlier stage's weights:"
      f" {', '.join(free)}"
    )
  stage = dataclasses.replace(free[name], num_updates=(turns + 1) * num_updates)
  cadence = dataclasses.replace(
    run.cadence,
    log=min(run.cadence.log, num_updates),
    checkpoint=min(run.cadence.checkpoint or num_updates, num_updates),
    observe=num_updates,
  )
  with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
      stages=(stage,),
      workdir=epath.Path(folder),
      seed=run.seed,
      batches=run.batches,
      mesh=run.mesh,
      cadence=cadence,
      observe=lambda *_: None,
    )
    functions = trainer.compile(stage, {}, Report(epath.Path(folder), 0))
    watched = Turns(run, stage, functions)
    dataclasses.replace(trainer, observe=watched).run()
  shares = np.array(watched.bare) / np.array(watched.loop)
  loop = float(np.median(watched.loop))
  return {
    "stage": name,
    "batch_size": stage.batch_size,
    "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
    "turns": turns,
    "updates_per_turn": num_updates,
    "loop_seconds_per_update": loop,
    "bare_seconds_per_update": float(np.median(watched.bare)),
    "images_per_second": stage.batch_size / loop,
    "share_of_bare": float(np.median(shares)),
    "share_of_bare_least": float(shares.min()),
    "share_of_bare_most": float(shares.max()),
  }
