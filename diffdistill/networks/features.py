"""The intermediate results of a network, returned by name."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from diffdistill.networks.layers import Map

COLLECTION = "features"


def keep(module: nn.Module, name: str, h: Map, names: tuple[str, ...]) -> None:
  """Keeps h as the feature `name` if the name is one of `names`."""
  if name in names:
    # The suffix is needed, because a part of the module may have the feature's
    # name.
    module.sow(COLLECTION, f"{name}_out", h.astype(jnp.float32))


def kept(
  variables: Mapping[str, Any], names: tuple[str, ...]
) -> dict[str, Array]:
  """The features that a module has kept, in the order of the names."""
  return {name: variables[COLLECTION][f"{name}_out"][0] for name in names}


def levels_of(levels: int) -> tuple[str, ...]:
  """The names of a U-Net's features, from input to output.

  Args:
    levels: the number of levels.
  """
  down, up = ([f"{way}_{i}" for i in range(levels)] for way in ("down", "up"))
  return (*down, "middle", *reversed(up))
