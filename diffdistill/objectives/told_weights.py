"""Guidance weights that a network is told, drawn from a range (low, high)."""

from typing import Annotated

import jax
from jaxtyping import Array, Float

from diffdistill.arrays import Key
from diffdistill.denoiser import Denoiser
from diffdistill.ranges import GUIDANCE

Weights = tuple[Annotated[float, GUIDANCE], ...]


def check_told(told: Weights, denoiser: Denoiser) -> None:
  """Refuses a range that is none, or that the network cannot be told.

  Raises:
    ValueError: if `told` is not (low, high) with low < high, or if the network
      reads no guidance weight.
  """
  if len(told) != 2 or not told[0] < told[1]:
    raise ValueError(
      f"told is {told}; pass the lowest and the highest guidance weight, as"
      " (0.0, 4.0)"
    )
  if not denoiser.told_guidance:
    raise ValueError(
      f"told is {told}, but the network reads no guidance weight; pass"
      " model.network.told_guidance=True"
    )


def draw_weights(key: Key, count: int, told: Weights) -> Float[Array, " count"]:
  """Draws w ~ U[low, high] for each image (Meng et al. 2023)."""
  low, high = told
  return jax.random.uniform(key, (count,), minval=low, maxval=high)
