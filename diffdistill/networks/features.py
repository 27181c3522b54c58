"""What a network computes on its way, handed out by name."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from diffdistill.networks.layers import Map

COLLECTION = "features"


def keep(module: nn.Module, name: str, h: Map, names: tuple[str, ...]) -> None:
  """Hands h out as the feature `name` of the module, where it is asked for."""
  if name in names:
    # A part of the module may have the feature's name.
    module.sow(COLLECTION, f"{name}_out", h.astype(jnp.float32))


def kept(
  variables: Mapping[str, Any], names: tuple[str, ...]
) -> dict[str, Array]:
  """The features that a module has handed out, in the order of the names."""
  return {name: variables[COLLECTION][f"{name}_out"][0] for name in names}


def levels_of(levels: int) -> tuple[str, ...]:
  """down_I, middle and up_I for so many levels, from input to output."""
  down, up = ([f"{way}_{i}" for i in range(levels)] for way in ("down", "up"))
  return (*down, "middle", *reversed(up))
