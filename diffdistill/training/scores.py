"""Computes the score of a round's weights, by which the best are selected."""

from collections.abc import Callable

import jax

from diffdistill.arrays import Params
from diffdistill.data.pair_pipeline import PairPipeline
from diffdistill.objectives.objective import Now, Trees
from diffdistill.training.functions import StageFunctions
from diffdistill.training.sharding import shard_batch
from diffdistill.training.shared import Shared
from diffdistill.training.stage import Round
from diffdistill.training.training_stage import Training


def distance_score(
  shared: Shared, stage: Training, round_: Round, num_images: int
) -> Callable[[Params], float]:
  """Makes a function from weights to the Frechet distance of their images.

  Args:
    shared: the objects that all rounds of the run share.
    stage, round_: the stage and the round that are trained.
    num_images: how many images are made.
  """
  return lambda product: shared.distance(stage, round_, product, num_images)


def held_out_score(
  shared: Shared,
  functions: StageFunctions,
  pairs: PairPipeline,
  frozen: Trees,
  name: str,
  now: Now,
) -> Callable[[Params], float]:
  """Makes a function from weights to their mean loss on the held-out pairs.

  Args:
    shared: the objects that all rounds of the run share.
    functions: the functions of the stage.
    pairs: the data of the round.
    frozen: the frozen trees of the round.
    name: the name of the tree of weights that the round hands on.
    now: the place in the round that the loss gets; it is the same for every
      score.
  """
  now, key = shared.on_device((now, jax.random.key(shared.seed)))

  def score(product: Params) -> float:
    trees = {**frozen, name: product}
    losses = []
    for rows in pairs.held_out():
      batch = shard_batch(rows, shared.layout.mesh)
      metrics = functions.evaluate(trees, batch, key, now)
      losses.append(jax.device_get(metrics[f"{name}/loss"]))
    return float(sum(t for t, _ in losses) / sum(n for _, n in losses))

  return score
