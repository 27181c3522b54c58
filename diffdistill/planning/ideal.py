"""How far an update is from the network passes that its paper needs.

The bare passes (a forward pass, a gradient, a tangent, each compiled by itself
and called on the update's own batch) are timed in turns with the compiled
update, so that a machine whose speed drifts is compared with itself.
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

# A student of this many steps, whose teacher is guided.
NUM_STEPS = 4


def random_frozen(run: Experiment, stage: Training) -> dict[str, Params]:
  """Weights of the right shapes for what a stage is given, with no meaning."""
  key = jax.random.key(run.seed)
  return {
    name: _drawn(run, stage.objective.frozen_init(name), key)
    for name in stage.frozen
  }


def random_denoiser(run: Experiment) -> Params:
  """Weights of the right shapes for the denoiser, with no meaning."""
  return _drawn(run, run.denoiser.network.init, jax.random.key(run.seed))


def _drawn(run: Experiment, init: Callable[[Key], Params], key: Key) -> Params:
  """Weights that lie from the first on as the run's do."""
  places = tree_shardings(jax.eval_shape(init, key), run.layout)
  return jax.jit(init, out_shardings=places)(key)


def first_batch(run: Experiment, stage: Training) -> Batch:
  """One batch of the kind that a stage consumes, stored as it is, on the mesh.

  Of pairs, the images are those of the data: no teacher has made any.
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
  """An update's time over that of its bare passes: 1 is the ideal.

  Args:
    run: the recipe.
    stage: of it, with students of 4 steps where it asks for a number.
    functions: compiled for the stage.
    num_updates: of each turn; whole cycles of an alternating paper.
    turns: how many are timed.
    profile: a folder for the profiler's trace of one turn more.
  """
  objective = stage.objective
  key, now, rates = jax.device_put(
    (jax.random.key(run.seed), *still(objective)), replicated(run.mesh)
  )
  frozen, batch = random_frozen(run, stage), first_batch(run, stage)
  trained = jax.jit(as_trained)(batch)
  state = functions.init(key, frozen)
  frozen = {name: frozen[name] for name in objective.needs}
  if "teacher" in frozen:
    frozen["teacher"] = in_dtype(frozen["teacher"], stage.teacher_dtype)
  cycle = objective.cycle
  needed = _needed(objective)
  passes = {
    kind: call
    for kind, call in _passes(run, objective, trained, key).items()
    if needed[kind]
  }

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
    for turn in cycle
  ) / len(cycle)
  update(len(cycle))  # compiles
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


def share_of_peak(flops_per_second: float) -> float | None:
  """Of what all devices can do in bfloat16; None where that is not known."""
  chip = chip_of(jax.devices()[0].device_kind)
  if chip is None:
    return None
  return flops_per_second / (chip.flops * jax.device_count())


def still(objective: Objective) -> tuple[Now, dict[str, Any]]:
  """Where a round is in which nothing moves: all learning rates are 0."""
  rate: Any = np.float32(0)
  steps: Any = np.int32(NUM_STEPS)
  guided: Any = np.float32(1)
  now = Now(num_steps=steps, guided=guided, step=steps, progress=rate)
  return now, dict.fromkeys(objective.trees, rate)


def _needed(objective: Objective) -> Mapping[str, float]:
  """The passes of one update and example, by kind: a cycle's mean."""
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
  run: Experiment, objective: Any, batch: Batch, key: Key
) -> dict[str, Callable[[], Any]]:
  """The bare passes, by the names of `Passes`, on this batch."""
  denoiser, x = run.denoiser, batch["image"]
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
    parts = [jnp.mean(jnp.square(f)) for f in features.values()]
    return jnp.sum(jnp.stack(parts))

  def scalar(params: Params) -> jax.Array:
    return jnp.mean(jnp.square(forward(params)))

  calls = {
    "forward": (forward, params),
    "gradient": (jax.grad(scalar), params),
    # Along other weights: products with the same ones could be merged.
    "tangent": (
      lambda trees: jax.jvp(forward, (trees[0],), (trees[1],)),
      (params, other),
    ),
    "input_gradient": (
      lambda params: jax.grad(
        lambda x: jnp.mean(jnp.square(forward(params, x)))
      )(x),
      params,
    ),
    "input_tangent": (
      lambda params: jax.jvp(lambda x: forward(params, x), (x,), (x,)),
      params,
    ),
    "trunk": (lambda params: trunk(params, x), params),
    "trunk_gradient": (lambda params: jax.grad(trunk, 1)(params, x), params),
  }
  classifier = classifier_of(objective)
  if classifier is not None:
    weights = _drawn(run, classifier.init, key)
    trained = makes_classifier(objective)

    def features(weights: Params, x: jax.Array) -> jax.Array:
      return jnp.mean(jnp.square(classifier.apply(weights, x).features))

    def classify(weights: Params) -> jax.Array:
      return features(weights, x)

    calls["classifier"] = (classify, weights)
    # In the weights where they are trained, else in the image.
    argument = 0 if trained else 1
    calls["classifier_gradient"] = (
      lambda w: jax.grad(features, argument)(w, x),
      weights,
    )
  return {
    kind: _compiled(function, argument)
    for kind, (function, argument) in calls.items()
  }


def _compiled(
  function: Callable[[Params], Any], argument: Params
) -> Callable[[], Any]:
  jitted = jax.jit(function)
  return lambda: jitted(argument)


def _timed(call: Callable[[], Any], times: int) -> float:
  start, result = time.monotonic(), None
  for _ in range(times):
    result = call()  # in place of the one before: gradients are large
  jax.block_until_ready(result)
  return (time.monotonic() - start) / times
