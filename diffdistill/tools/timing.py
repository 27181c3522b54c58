"""Measures how fast the stages of a recipe train.

Three times are compared: the whole loop as `train` runs it, with data, logging
and checkpoints; the bare compiled update, called again and again on one batch;
and the network passes that the paper needs (planning/ideal.py).

Loop and bare update take turns in one process, and their ratio is computed for
each turn. So the ratio stays right even if the machine's speed drifts. If a
stage needs weights of earlier stages, its update runs on random weights and its
loop is not timed.
"""

import dataclasses
import functools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from diffdistill.arrays import Params
from diffdistill.evaluation.speeds import (
  BATCH,
  SPEED,
  TIMED,
  rounded,
  speeds,
)
from diffdistill.planning.ideal import (
  first_batch,
  random_denoiser,
  random_frozen,
  share_of_ideal,
  still,
)
from diffdistill.run.experiment import Experiment
from diffdistill.run.teacher_pairs import pair_store
from diffdistill.run.weights_of_another_run import load_outside
from diffdistill.training.functions import StageFunctions
from diffdistill.training.report import Report, Work
from diffdistill.training.sharding import replicated
from diffdistill.training.stage import Round
from diffdistill.training.trainer import Trainer
from diffdistill.training.training_stage import Training, trainings


class Turns:
  """Observes a training loop, and times the bare update after every turn.

  A turn is the updates between two calls of this observer.

  Args:
    run: the recipe.
    stage: the stage that is timed.
    functions: the compiled functions of the stage.
  """

  def __init__(
    self, run: Experiment, stage: Training, functions: StageFunctions
  ):
    key = jax.random.key(run.seed)
    self._update = functions.updates[stage.objective.cycle[0]]
    self._state = functions.init(key, {})
    place = replicated(run.mesh)
    self._inputs = (
      first_batch(run, stage),
      *jax.device_put((key, *still(stage.objective)), place),
    )
    self._bare(1)
    self._last_step = 0
    self._left = 0.0
    self.loop: list[float] = []
    self.bare: list[float] = []

  def __call__(
    self, stage: Training, round_: Round, params: Params, step: int
  ) -> None:
    """Times the loop's updates since the last call, then as many bare ones."""
    jax.block_until_ready(params)
    seconds, updates = time.monotonic() - self._left, step - self._last_step
    # The first turn is not counted, because the loop compiles in it.
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
  run: Experiment,
  name: str | None,
  num_updates: int,
  turns: int,
  num_steps: Sequence[int],
  profile: Path | None,
) -> dict[str, Any]:
  """Times the updates of a recipe, and its teacher's sampler.

  Args:
    run: the recipe.
    name: the name of one stage that trains; None means all such stages.
    num_updates: the number of updates in each turn.
    turns: the number of timed turns.
    num_steps: the numbers of sampler steps to time, one after the other.
    profile: the folder for the profiler's traces, one per stage; None means no
      traces.

  Returns:
    The times as plain values for JSON.

  Raises:
    ValueError: if the stage does not exist or trains nothing.
  """
  trains = {
    name: stage
    for name, stage in trainings(run.stages).items()
    if not stage.source
  }
  if name is not None and name not in trains:
    raise ValueError(f"stage is {name!r}; pass one of {', '.join(trains)}")
  stages = trains.values() if name is None else [trains[name]]
  return {
    "devices": run.devices,
    "turns": turns,
    "updates_per_turn": num_updates,
    "stages": [
      _stage(run, s, num_updates, turns, profile and profile / s.name)
      for s in stages
    ],
    "sampling": _sampling(run, num_steps, turns),
  }


def _stage(
  run: Experiment,
  stage: Training,
  num_updates: int,
  turns: int,
  profile: Path | None,
) -> dict[str, Any]:
  """Times a stage's update, and its loop if the stage needs no other stage."""
  with tempfile.TemporaryDirectory() as folder:
    trainer = _trainer(run, stage, epath.Path(folder), num_updates, turns)
    report = Report(epath.Path(folder), Work(0))
    frozen = random_frozen(run, stage)
    functions = trainer.compile(stage, frozen, report)
    result = {
      "stage": stage.name,
      "batch_size": stage.batch_size,
      **share_of_ideal(run, stage, functions, num_updates, turns, profile),
    }
    if not stage.frozen:
      result |= _loop(run, stage, trainer, functions)
  stats = jax.devices()[0].memory_stats() or {}
  # The peak of the first device since this process began; None on a CPU.
  result["peak_bytes"] = stats.get("peak_bytes_in_use")
  return result


def _sampling(
  run: Experiment, num_steps: Sequence[int], turns: int
) -> list[dict[str, Any]]:
  """Times the first sampler of the recipe, which is the teacher's."""
  samplers = [stage.objective.sampler for stage, _ in run.models.values()]
  sampler = samplers[0] if samplers else None
  if sampler is None:
    return []
  generator = run.generator(sampler, run.evaluation.batch_size)
  params = random_denoiser(run)
  rows = []
  for steps in num_steps:
    seconds = []
    for _ in range(turns + 1):
      start = time.monotonic()
      batches = generator.batches(params, 0, generator.batch_size, steps)
      jax.block_until_ready(list(batches))
      seconds.append(time.monotonic() - start)
    size, timed = generator.batch_size, seconds[1:]  # the first call compiles
    speed = rounded(speeds(SPEED, size, timed))
    rows.append({"num_steps": steps, **speed, TIMED: len(timed), BATCH: size})
  return rows


def _trainer(
  run: Experiment,
  stage: Training,
  workdir: epath.Path,
  num_updates: int,
  turns: int,
) -> Trainer:
  """A trainer of one stage that logs and saves in every turn, for timing."""
  length = (turns + 1) * num_updates
  return Trainer(
    stages=(dataclasses.replace(stage, num_updates=length, minutes=0.0),),
    workdir=workdir,
    seed=run.seed,
    batches=run.batches,
    pairs=functools.partial(pair_store, run, workdir),
    outside=functools.partial(load_outside, run),
    layout=run.layout,
    cadence=dataclasses.replace(
      run.cadence,
      log=min(run.cadence.log, num_updates),
      checkpoint=min(run.cadence.checkpoint or num_updates, num_updates),
      observe=num_updates,
    ),
    observe=lambda *_: None,
    distance=lambda *_: 0.0,
  )


def _loop(
  run: Experiment, stage: Training, trainer: Trainer, functions: StageFunctions
) -> dict[str, float]:
  """Times the whole loop, and computes the bare update's share of its time."""
  watched = Turns(run, stage, functions)
  dataclasses.replace(trainer, observe=watched).run()
  shares = np.array(watched.bare) / np.array(watched.loop)
  loop = float(np.median(watched.loop))
  return {
    "loop_seconds_per_update": loop,
    "loop_seconds_per_update_least": min(watched.loop),
    "loop_seconds_per_update_most": max(watched.loop),
    **rounded(speeds(SPEED, stage.batch_size, watched.loop)),
    "share_of_bare": float(np.median(shares)),
    "share_of_bare_least": float(shares.min()),
    "share_of_bare_most": float(shares.max()),
  }
