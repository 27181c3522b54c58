"""Hides labels in training, so that a network can be guided afterwards."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import Condition, Key
from diffdistill.denoiser import Denoiser


def check_label_dropout(rate: float, denoiser: Denoiser) -> None:
  """Refuses a rate without a null label, and a null label without a rate.

  Raises:
    ValueError: if only one of both is given.
  """
  if (rate > 0) != (denoiser.null_label is not None):
    raise ValueError(
      f"label_dropout is {rate}, but the denoiser's null label is"
      f" {denoiser.null_label}; pass both or neither"
    )


def hide_labels(
  condition: Condition, null: int | None, rate: float, key: Key
) -> tuple[Condition, Float[Array, " b"] | None]:
  """Replaces a share of the labels by the null label.

  Args:
    condition: the conditions of a batch.
    null: the null label; None to hide nothing.
    rate: the share of labels to hide.
    key: the key of the choice.

  Returns:
    The conditions, and 1 for each hidden label, 0 for each other; None instead
    if no label can be hidden.
  """
  label = condition.label
  if label is None or null is None:
    return condition, None
  hidden = jax.random.bernoulli(key, rate, label.shape)
  label = jnp.where(hidden, null, label)
  return condition._replace(label=label), hidden.astype(jnp.float32)
