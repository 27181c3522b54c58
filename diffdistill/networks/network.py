"""The interface of a network: an architecture without weights.

The teacher, the student and an auxiliary network share one `Network` and have
different weights, their `Params`.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, cast, runtime_checkable

import flax.linen as nn
import jax
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
from diffdistill.networks.features import COLLECTION, kept
from diffdistill.networks.require import require_known

# Generators of random bits. The last two use instructions of the device, which
# are cheaper on accelerators. Their bits differ between kinds of devices, and
# may depend on how a batch is split over the devices.
THREEFRY = "threefry2x32"
# The values of fields with which XLA computes the attention.
_BY_XLA = {"attention": "xla", "attention_kernel": "xla"}
DROPOUT_BITS = (THREEFRY, "rbg", "unsafe_rbg")
# The output has the height and width of the input. A network whose output is
# "both" (x0 and eps) has twice the channels of the input.
Output = Float[Array, "b h w out"]


@runtime_checkable
class Network(Protocol):
  """An architecture that maps a noisy image and its noise level to an output.

  two_times is True if the network reads `s`, the time that a step aims at. `t`
  is the scalar that the preconditioning gives, normally in [0, 1]. The
  condition is empty for an unconditional network. With a `key`, dropout is on.
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
  """A `Network` that calls a Linen module as `module(x, t, label, train)`.

  A module with the field two_times=True is also given s, and one with
  told_guidance=True the guidance weights of the condition. A module with a
  property `features` is also given `names`, which it passes to `features.keep`.

  Args:
    module: takes x of shape `b h w c`, t of shape `b`, labels of shape `b` or
      None, and a bool `train`, which turns dropout on.
    precision: the precision of matrix products, a name of
      `jax.default_matmul_precision`; None uses the setting of the process.
    image_shape: (h, w, c) of the input.
    num_classes: the number of classes; 0 for an unconditional network.
    dropout_bits: the generator of the random bits of dropout; one of
      DROPOUT_BITS.
  """

  module: nn.Module
  image_shape: tuple[int, int, int]
  num_classes: int = 0
  precision: str | None = None
  dropout_bits: str = THREEFRY

  def __post_init__(self):
    require_known("dropout_bits", self.dropout_bits, DROPOUT_BITS)
    expected = getattr(self.module, "num_classes", self.num_classes)
    if expected != self.num_classes:
      raise ValueError(
        f"num_classes is {self.num_classes} but the module's is {expected};"
        " pass the same to both"
      )

  @property
  def two_times(self) -> bool:
    return getattr(self.module, "two_times", False)

  @property
  def told_guidance(self) -> bool:
    return getattr(self.module, "told_guidance", False)

  @property
  def features(self) -> tuple[str, ...]:
    """The names of the features that `look` can give."""
    return getattr(self.module, "features", ())

  @property
  def exact(self) -> "LinenNetwork":
    """The same network in float32, with forward and reverse derivatives.

    XLA computes the attention, since the fused kernel has no forward-mode
    derivative. The backward pass recomputes no block. Matrix products use the
    full float32 factors, which GPUs and TPUs round by default.
    """
    exact = self._changed(dtype="float32", remat="none", **_BY_XLA)
    return dataclasses.replace(exact, precision="highest")

  @property
  def portable(self) -> "LinenNetwork":
    """The same network with attention that every platform can compute."""
    return self._changed(**_BY_XLA)

  def _changed(self, **wanted: str) -> "LinenNetwork":
    """This network with other values of those fields that its module has."""
    # The field "attention" of a U-Net is a list of heights, not a text, and
    # "remat" of an older config is a bool.
    fields: dict[str, Any] = {
      name: value
      for name, value in wanted.items()
      if isinstance(getattr(self.module, name, None), str | bool)
    }
    return dataclasses.replace(self, module=self.module.clone(**fields))

  def init(self, key: Key) -> Params:
    x = jnp.zeros((1, *self.image_shape))
    label = jnp.zeros((1,), jnp.int32) if self.num_classes else None
    # Without a guidance weight, the module would draw no branch for it.
    more: dict[str, Any] = {}
    if self.told_guidance:
      more["guidance"] = jnp.zeros((1,))
    inputs = (x, jnp.zeros((1,)), label, False)
    return self.module.init(key, *inputs, **more)["params"]

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
    return self._run(params, x, t, condition, s=s, key=key)[0]

  def look(
    self,
    params: Params,
    x: Image,
    t: Time,
    condition: Condition = UNCONDITIONAL,
    *,
    names: tuple[str, ...],
    s: Time | None = None,
    key: Key | None = None,
  ) -> tuple[Output, Mapping[str, Array]]:
    """Like `apply`, but also returns features of the same pass, in float32.

    If the output is not used, the compiler removes the layers after the last
    feature.

    Raises:
      ValueError: if a name is not one of `features`.
    """
    unknown = [name for name in names if name not in self.features]
    if unknown or not names:
      known = ", ".join(self.features) or "none"
      raise ValueError(
        f"features are {list(names)}, but {type(self.module).__name__} has"
        f" {known}; pass one or more of these"
      )
    output, variables = self._run(
      params, x, t, condition, s=s, key=key, names=names
    )
    return output, kept(variables, names)

  def _run(
    self,
    params: Params,
    x: Image,
    t: Time,
    condition: Condition,
    *,
    s: Time | None,
    key: Key | None,
    names: tuple[str, ...] = (),
  ) -> tuple[Output, Mapping[str, Any]]:
    if s is not None and not self.two_times:
      raise ValueError(
        f"{type(self.module).__name__} takes no target time s; pass s=None"
      )
    if condition.guidance is not None and not self.told_guidance:
      raise ValueError(
        f"{type(self.module).__name__} takes no guidance weight; pass"
        " guidance=None, or told_guidance=True to the network"
      )
    label = condition.label
    if (label is None) != (self.num_classes == 0):
      raise ValueError(
        f"a network with num_classes={self.num_classes} needs"
        f" {'labels' if self.num_classes else 'no label'}"
      )
    more: dict[str, Any] = {"names": names} if names else {}
    if self.two_times:
      more["s"] = s
    if self.told_guidance:
      more["guidance"] = condition.guidance
    # A network without its own precision uses the setting of the process.
    exact = contextlib.nullcontext()
    if self.precision is not None:
      exact = jax.default_matmul_precision(self.precision)
    with exact:
      output, variables = self.module.apply(
        {"params": params},
        *(x, t, label, key is not None),
        **more,
        rngs=None if key is None else {"dropout": self._dropout_key(key)},
        mutable=[COLLECTION],
      )
    return cast(Array, output), variables

  def _dropout_key(self, key: Key) -> Key:
    """The key of dropout, of the generator whose bits dropout uses."""
    if self.dropout_bits == THREEFRY:
      return key
    # These generators have keys of four words, which JAX fills like this too.
    half = jax.random.key_data(key)
    data = jnp.concatenate([half, half])
    return jax.random.wrap_key_data(data, impl=self.dropout_bits)


def add_branches(network: Network, params: Params, key: Key) -> Params:
  """Extends weights by the branches of a second time and a guidance weight.

  A branch is drawn in the same way as by `init`: its last layer is zero, so the
  output is unchanged for every s and every guidance weight. (If all its layers
  were zero, the branch could not learn.) Weights that have all branches of the
  network are returned unchanged.

  Args:
    network: the network that the weights are for.
    params: the weights of this network, or of the same network without one of
      its branches or both.
    key: draws the first layer of each branch.
  """
  embed = params.get("embed", {})
  missing = [name for name in branches_of(network) if name not in embed]
  if not missing or not embed:
    return params
  drawn = jax.jit(lambda key: network.init(key)["embed"])(key)
  added = {name: drawn[name] for name in missing}
  return {**params, "embed": {**embed, **added}}


def branches_of(network: Network) -> tuple[str, ...]:
  """The names, in the embedding, of the branches that are zero at first."""
  told = isinstance(network, LinenNetwork) and network.told_guidance
  return ("gap",) * network.two_times + ("guidance",) * told
