"""What a network is to the rest of the house: an architecture, no weights.

Teacher, student and auxiliary share one `Network` and differ in `Params`.
"""

import dataclasses
from typing import Protocol, cast, runtime_checkable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffdistill.arrays import (
  UNCONDITIONAL,
  Condition,
  Image,
  Key,
  Params,
  Time,
)

# Of the input's height and width; it may have more channels ("both").
Output = Float[Array, "b h w out"]


@runtime_checkable
class Network(Protocol):
  """An architecture that maps a noisy image and its noise level to an output.

  two_times: whether it takes `s`, the time aimed at. `t` is whatever scalar the
  preconditioning hands over, normally in [0, 1]; the condition is empty for an
  unconditional network; `key` is given exactly when dropout is on.
  """

  @property
  def two_times(self) -> bool: ...

  def init(self, key: Key) -> Params: ...

  def apply(
    self,
    params: Params,
    x: Image,
    t: Time,
    condition: Condition = UNCONDITIONAL,
    *,
    s: Time | None = None,
    key: Key | None = None,
  ) -> Output: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinenNetwork:
  """A `Network` from a Linen module called as `module(x, t, label, train)`.

  Args:
    module: takes x of shape `b h w c`, t of shape `b`, labels of shape `b` or
      None, and `train: bool` (dropout on).
    image_shape: (h, w, c) of the input.
    num_classes: 0 for an unconditional network.
  """

  module: nn.Module
  image_shape: tuple[int, int, int]
  num_classes: int = 0

  def __post_init__(self):
    expected = getattr(self.module, "num_classes", self.num_classes)
    if expected != self.num_classes:
      raise ValueError(
        f"num_classes is {self.num_classes} but the module's is {expected};"
        " pass the same to both"
      )

  @property
  def two_times(self) -> bool:
    return False

  def init(self, key: Key) -> Params:
    x = jnp.zeros((1, *self.image_shape))
    label = jnp.zeros((1,), jnp.int32) if self.num_classes else None
    return self.module.init(key, x, jnp.zeros((1,)), label, False)["params"]

  def apply(
    self,
    params: Params,
    x: Image,
    t: Time,
    condition: Condition = UNCONDITIONAL,
    *,
    s: Time | None = None,
    key: Key | None = None,
  ) -> Output:
    if s is not None:
      raise ValueError(
        f"{type(self.module).__name__} takes no target time s; pass s=None"
      )
    label = condition.label
    if (label is None) != (self.num_classes == 0):
      raise ValueError(
        f"a network with num_classes={self.num_classes} needs"
        f" {'labels' if self.num_classes else 'no label'}"
      )
    rngs = None if key is None else {"dropout": key}
    output = self.module.apply(
      {"params": params}, x, t, label, key is not None, rngs=rngs
    )
    # Linen's apply is typed for mutable collections too; there are none here.
    return cast(Array, output)
