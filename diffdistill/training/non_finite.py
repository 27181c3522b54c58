"""Stops a round whose gradients or weights are NaN or infinite."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffdistill.arrays import Params
from diffdistill.training import optimizers
from diffdistill.training.stage import Round
from diffdistill.training.state import TrainState


class TrainingStoppedError(Exception):
  """Training can no longer succeed; the message says why, in one line."""


def check_metrics(
  round_: Round, step: int, values: Mapping[str, float], max_skipped: int
) -> None:
  """Stops a round if too many updates in a row have NaN or infinite gradients.

  Args:
    round_: the round that is trained.
    step: how many updates are done.
    values: the metrics after these updates.
    max_skipped: how many updates in a row may be skipped.

  Raises:
    TrainingStoppedError: if more than max_skipped updates in a row were
      skipped.
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
  """Refuses weights that learned nothing, or that are NaN or infinite.

  Raises:
    TrainingStoppedError: if every update of the round was skipped, or a weight
      is NaN or infinite.
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
  """Whether every number in a tree of arrays is finite."""
  leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
  return jnp.stack(leaves).all()
