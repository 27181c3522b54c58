"""Compares an update's time with the network passes that its paper needs.

A bare pass is a forward pass, a gradient or a tangent, compiled alone and
called on the update's own batch. Bare passes and the compiled update are timed
in turns, so a machine whose speed drifts does not change the ratio.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffdistill.arrays import Batch, Key, Params
from diffdistill.evaluation.speeds import rounded, speeds
from diffdistill.objectives.objective import (
  Now,
  Objective,
  classifier_of,
  makes_classifier,
  turn_of,
)
from diffdistill.planning.chips import chip_of
from diffdistill.planning.flops import count_flops
from diffdistill.run.experiment import Experiment
from diffdistill.training.augment import as_trained
from diffdistill.training.functions import StageFunctions
from diffdistill.training.sharding import (
  replicated,
  shard_batch,
  tree_shardings,
)
from diffdistill.training.state import in_dtype
from diffdistill.training.training_stage import Training

# If a student's number of steps varies, updates with this number are measured.
NUM_STEPS = 4


def random_frozen(run: Experiment, stage: Training) -> dict[str, Params]:
  """Draws random weights for the frozen trees of a stage."""
  key = jax.random.key(run.seed)
  return {
    name: _drawn(run, stage.objective.frozen_init(name), key)
    for name in stage.frozen
  }


def random_denoiser(run: Experiment) -> Params:
  """Draws random weights for the denoiser."""
  return _drawn(run, run.denoiser.network.init, jax.random.key(run.seed))


def _drawn(run: Experiment, init: Callable[[Key], Params], key: Key) -> Params:
  """Draws random weights, sharded from the start like those of the run."""
  places = tree_shardings(jax.eval_shape(init, key), run.layout)
  return jax.jit(init, out_shardings=places)(key)


def first_batch(run: Experiment, stage: Training) -> Batch:
  """Returns one batch of the kind that a stage trains on, on the mesh.

  If a stage trains on pairs, images of the data replace a teacher's images.
  """
  rows = run.batches(stage.batch_size, run.seed).batch(0)
  if stage.objective.consumes == "pairs":
    random, image = np.random.default_rng(run.seed), rows["image"]
    noise = random.standard_normal(image.shape, np.float32)
    pairs = {
      "noise": noise.astype(np.float16),
      "image": np.rint(image).astype(np.uint8),
    }
    rows = {**pairs, "label": rows["label"]} if run.num_classes else pairs
  return shard_batch(rows, run.mesh)


def share_of_ideal(
  run: Experiment,
  stage: Training,
  functions: StageFunctions,
  num_updates: int,
  turns: int,
  profile: Path | None = None,
) -> dict[str, Any]:
  """Measures the ratio of an update's time to the time of its bare passes.

  The ideal ratio is 1. A student has 4 steps if the stage needs a number.

  Args:
    run: the recipe.
    stage: the stage of the recipe.
    functions: the compiled functions of the stage.
    num_updates: the number of updates in each timing; whole cycles of turns.
    turns: the number of timings of the update and of each bare pass.
    profile: a folder for the profiler's trace of one more timing.
  """
  batch = first_batch(run, stage)
  update, flops = _timed_update(run, stage, functions, batch)
  needed = _needed(stage.objective)
  trained = jax.jit(as_trained)(batch)
  passes = {
    kind: call
    for kind, call in _passes(run, stage.objective, trained).items()
    if needed[kind]
  }
  update(len(stage.objective.cycle))  # not timed, because it compiles
  for call in passes.values():
    _timed(call, 1)
  updates, ideals = [], []
  for _ in range(turns):
    updates.append(update(num_updates))
    ideals.append(
      sum(
        needed[kind] * _timed(call, num_updates)
        for kind, call in passes.items()
      )
    )
  if profile is not None:
    with jax.profiler.trace(str(profile)):
      update(num_updates)
  ratios = np.array(updates) / np.array(ideals)
  seconds = float(np.median(updates))
  return {
    "bare_seconds_per_update": seconds,
    "bare_seconds_per_update_least": min(updates),
    "bare_seconds_per_update_most": max(updates),
    **rounded(speeds("bare_images_per_second", stage.batch_size, updates)),
    "flops_per_update": flops,
    "flops_per_second": flops / seconds,
    "share_of_peak": share_of_peak(flops / seconds),
    "passes_seconds_per_update": float(np.median(ideals)),
    "update_over_passes": float(np.median(ratios)),
    "update_over_passes_least": float(ratios.min()),
    "update_over_passes_most": float(ratios.max()),
  }


def _timed_update(
  run: Experiment, stage: Training, functions: StageFunctions, batch: Batch
) -> tuple[Callable[[int], float], float]:
  """Prepares updates of a stage on one batch.

  Returns a function that makes some updates and returns the seconds of each,
  and the mean FLOPs of an update.
  """
  objective = stage.objective
  key, now, rates = jax.device_put(
    (jax.random.key(run.seed), *still(objective)), replicated(run.mesh)
  )
  frozen = random_frozen(run, stage)
  state = functions.init(key, frozen)
  frozen = {name: frozen[name] for name in objective.needs}
  if "teacher" in frozen:
    frozen["teacher"] = in_dtype(frozen["teacher"], stage.teacher_dtype)

  def update(times: int) -> float:
    nonlocal state
    start = time.monotonic()
    for i in range(times):
      call = functions.updates[turn_of(objective, i)]
      state, _ = call(state, frozen, batch, key, now, rates)
    jax.block_until_ready(state)
    return (time.monotonic() - start) / times

  jitted: Any = functions.updates
  flops = sum(
    count_flops(jitted[turn].trace(state, frozen, batch, key, now, rates).jaxpr)
    for turn in objective.cycle
  )
  return update, flops / len(objective.cycle)


def share_of_peak(flops_per_second: float) -> float | None:
  """Returns the share of all devices' peak bfloat16 speed; None if unknown."""
  chip = chip_of(jax.devices()[0].device_kind)
  if chip is None:
    return None
  return flops_per_second / (chip.flops * jax.device_count())


def still(objective: Objective) -> tuple[Now, dict[str, Any]]:
  """Returns progress and rates for an update that changes no weights."""
  rate: Any = np.float32(0)
  steps: Any = np.int32(NUM_STEPS)
  guided: Any = np.float32(1)
  now = Now(num_steps=steps, guided=guided, step=steps, progress=rate)
  return now, dict.fromkeys(objective.trees, rate)


def _needed(objective: Objective) -> Mapping[str, float]:
  """Returns the mean passes per update and example over a cycle, by kind."""
  costs = [
    vars(objective.passes(turn, NUM_STEPS, guided=True))
    for turn in objective.cycle
  ]
  return {
    kind: sum(cost[kind] for cost in costs) / len(costs)
    for kind in costs[0]
    if kind != "trunk_share"
  }


def _passes(
  run: Experiment, objective: Any, batch: Batch
) -> dict[str, Callable[[], Any]]:
  """Returns the bare passes on this batch, by the names of `Passes`."""
  denoiser, x, key = run.denoiser, batch["image"], jax.random.key(run.seed)
  t = jnp.full(x.shape[:1], 0.5)
  params, other = (
    _drawn(run, denoiser.network.init, key) for key in jax.random.split(key)
  )
  condition = batch["condition"]

  def forward(params: Params, x: jax.Array = x) -> jax.Array:
    return denoiser(params, x, t, condition).x0

  def trunk(params: Params, x: jax.Array) -> jax.Array:
    _, features = denoiser.look(
      params, x, t, condition, names=objective.features
    )
    return jnp.sum(jnp.stack([_mean_square(f) for f in features.values()]))

  def scalar(params: Params) -> jax.Array:
    return _mean_square(forward(params))

  def tangent(params: Params) -> tuple[jax.Array, jax.Array]:
    return jax.jvp(lambda x: forward(params, x), (x,), (x,))

  calls = {
    "forward": (forward, params),
    "gradient": (jax.grad(scalar), params),
    # The tangent points to other weights. With the same weights, the compiler
    # could merge products.
    "tangent": (
      lambda trees: jax.jvp(forward, (trees[0],), (trees[1],)),
      (params, other),
    ),
    "input_gradient": (
      lambda params: jax.grad(lambda x: _mean_square(forward(params, x)))(x),
      params,
    ),
    "input_tangent": (tangent, params),
    "tangent_gradient": (
      jax.grad(lambda params: _mean_square(jnp.stack(tangent(params)))),
      params,
    ),
    "trunk": (lambda params: trunk(params, x), params),
    "trunk_gradient": (lambda params: jax.grad(trunk, 1)(params, x), params),
  }
  passes = {
    kind: _compiled(function, argument)
    for kind, (function, argument) in calls.items()
  }
  return passes | _classifier_passes(run, objective, x, key)


def _classifier_passes(
  run: Experiment, objective: Any, x: jax.Array, key: Key
) -> dict[str, Callable[[], Any]]:
  """Returns the bare passes of an objective's classifier; {} without one."""
  classifier = classifier_of(objective)
  if classifier is None:
    return {}
  weights = _drawn(run, classifier.init, key)
  # Take the gradient in the weights if they are trained, otherwise in the
  # image.
  argument = 0 if makes_classifier(objective) else 1

  def features(weights: Params, x: jax.Array) -> jax.Array:
    return _mean_square(classifier.apply(weights, x).features)

  return {
    "classifier": _compiled(lambda w: features(w, x), weights),
    "classifier_gradient": _compiled(
      lambda w: jax.grad(features, argument)(w, x), weights
    ),
  }


def _mean_square(x: jax.Array) -> jax.Array:
  return jnp.mean(jnp.square(x))


def _compiled(
  function: Callable[[Params], Any], argument: Params
) -> Callable[[], Any]:
  jitted = jax.jit(function)
  return lambda: jitted(argument)


def _timed(call: Callable[[], Any], times: int) -> float:
  start, result = time.monotonic(), None
  for _ in range(times):
    result = call()  # drops the last result, since gradients are large
  jax.block_until_ready(result)
  return (time.monotonic() - start) / times
