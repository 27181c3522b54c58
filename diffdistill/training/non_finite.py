"""Where a round's numbers are none, and it cannot usefully go on."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffdistill.arrays import Params
from diffdistill.training import optimizers
from diffdistill.training.stage import Round
from diffdistill.training.state import TrainState


class TrainingStoppedError(Exception):
  """Training cannot usefully go on; the message says why, in one line."""


def check_metrics(
  round_: Round, step: int, values: Mapping[str, float], max_skipped: int
) -> None:
  """Stops a round whose updates stay non-finite.

  Raises:
    TrainingStoppedError: where more than `max_skipped` in a row were, as the
      metrics after `step` updates say.
  """
  for name, value in values.items():
    if name.endswith("/skipped_in_a_row") and value > max_skipped:
      raise TrainingStoppedError(
        f"{round_.name} stopped at update {step}: the last {value:.0f}"
        " updates had gradients that are not finite; lower the learning rate"
        " or raise the warm-up, then run the command in a new workdir, or in"
        f" this one without its folder {round_.stage}"
      )


def check_product(round_: Round, state: TrainState) -> None:
  """Stops a round that would end as it began, or with weights not finite.

  Raises:
    TrainingStoppedError: where every update was skipped or a weight is no
      number.
  """
  for name, opt_state in state.opt_state.items():
    skipped = int(opt_state.total_notfinite)
    updates = skipped + int(optimizers.applied(opt_state))
    finite = bool(_all_finite(state.params[name]))
    if skipped == updates or not finite:
      state_of = "finite" if finite else "not finite"
      raise TrainingStoppedError(
        f"{round_.name} made no usable {name}: {skipped} of"
        f" {updates} gradients were not finite and its weights are"
        f" {state_of}; lower the learning rate, then run the command in a new"
        f" workdir, or in this one without its folder {round_.stage}"
      )


@jax.jit
def _all_finite(tree: Params) -> Array:
  """Whether every number of a tree is finite; one small executable."""
  leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
  return jnp.stack(leaves).all()
