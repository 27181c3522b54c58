"""Divides a round into device calls of some updates, with their inputs."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from diffdistill.objectives.objective import Now
from diffdistill.training.clock import Clock
from diffdistill.training.stage import Round
from diffdistill.training.training_stage import Training


def calls(
  stage: Training, clock: Clock, first: int
) -> Iterator[tuple[int, int]]:
  """Yields (first update, number of updates) for each call of the round.

  A call has `updates_per_call` updates if it starts at a multiple of them and
  they all fit into the round; otherwise it has one.

  Args:
    stage: the stage that is trained.
    clock: the round's clock, which may fix its length between two calls.
    first: the first update, counted from 0.
  """
  step, length = first, stage.updates_per_call
  while step < clock.last:
    whole = step % length == 0 and step + length <= clock.last
    count = length if whole else 1
    yield step, count
    step += count


def rates_at(stage: Training, clock: Clock, step: int) -> dict[str, float]:
  """Returns each trained tree's learning rate at update `step`, from 0 on."""
  return {
    name: optimizer.rate(step, clock.last, clock.held)
    for name, optimizer in stage.all_optimizers.items()
  }


def scalars(
  stage: Training, round_: Round, clock: Clock, step: int, count: int
) -> tuple[Now, dict[str, Any]]:
  """Returns the place in the round and the learning rates, for some updates.

  Args:
    stage, round_: the stage and the round that are trained.
    clock: the clock of the round.
    step: the first update, counted from 0.
    count: the number of updates. If it is above 1, each value is an array with
      one row for each update.
  """
  steps = range(step, step + count)

  def row(values: Any, dtype: Any) -> Any:
    return np.array(np.broadcast_to(values, (count,)), dtype)

  now = Now(
    num_steps=row(round_.num_steps, np.int32),
    guided=row(round_.guided, np.float32),
    step=row(steps, np.int32),
    progress=row([clock.progress(i) for i in steps], np.float32),
  )
  each = [rates_at(stage, clock, i) for i in steps]
  rates = {
    name: row([rates[name] for rates in each], np.float32) for name in each[0]
  }
  if count > 1:
    return now, rates
  return jax.tree.map(lambda row: row[0], (now, rates))
