"""The optimizer of one trained tree, and its learning rate over a round.

The learning rate is a traced scalar by which the update is multiplied last. So
rounds of every length run the same executable.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from diffdistill.arrays import Params
from diffdistill.ranges import Range, Share, check_ranges

DECAYS = ("constant", "linear", "cosine")
KINDS = {"adam": optax.scale_by_adam, "radam": optax.scale_by_radam}
# This is the name of the moving average of weights that a round hands on.
EMA = "ema"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """Adam or RAdam with decoupled weight decay, clipping and weight averages.

  Args:
    kind: "adam" (Kingma & Ba 2015) or "radam" (Liu et al. 2020).
    learning_rate: the highest rate.
    warmup: how many updates the rate rises linearly from 0.
    decay: how the rate falls after the warm-up: constant, linear or cosine; the
      last two fall to 0 at the end of the round.
    b1, b2: the decays of the first and the second moment.
    eps: a number added to the root of the second moment.
    weight_decay: decoupled weight decay, times the learning rate (AdamW).
    clip: the largest global norm of the gradient, after its mean over all
      devices is taken; 0 for no clipping.
    ema_decay: the decay of the moving average of weights that the round hands
      on; with 0 the round hands on the weights themselves.
    other_ema_decays: the decays of further moving averages that the round
      keeps.
  """

  learning_rate: Annotated[float, Range(0, 10)]
  warmup: Annotated[int, Range(0, 10**9)] = 0
  decay: str = "constant"
  b1: Share = 0.9
  b2: Share = 0.999
  eps: Annotated[float, Range(0, 1, "least")] = 1e-8
  weight_decay: Annotated[float, Range(0, 100)] = 0.0
  clip: Annotated[float, Range(0, 10**9)] = 1.0
  ema_decay: Share = 0.0
  other_ema_decays: tuple[Share, ...] = ()
  kind: str = "adam"

  def __post_init__(self):
    for name, known in (("decay", DECAYS), ("kind", KINDS)):
      if getattr(self, name) not in known:
        raise ValueError(
          f"{name} is {getattr(self, name)!r}; pass one of {', '.join(known)}"
        )
    check_ranges(self)
    decays = [d for d in (self.ema_decay, *self.other_ema_decays) if d]
    if len(self.averages) < len(decays) or 0 in self.other_ema_decays:
      raise ValueError(
        f"other_ema_decays is {self.other_ema_decays}; pass decays above 0, all"
        " different"
      )

  @property
  def averages(self) -> Mapping[str, float]:
    """Returns each moving average's decay by name: "ema", "ema_0.9999"."""
    main = {EMA: self.ema_decay} if self.ema_decay else {}
    return {**main, **{f"{EMA}_{d:g}": d for d in self.other_ema_decays}}

  def transformation(self) -> optax.GradientTransformation:
    """Makes the optimizer without its rate; it skips non-finite gradients.

    The optimizer's state counts the skipped updates: `notfinite_count` counts
    those in a row, and `total_notfinite` counts all of them.
    """
    chain = optax.chain(
      optax.clip_by_global_norm(self.clip) if self.clip else optax.identity(),
      KINDS[self.kind](b1=self.b1, b2=self.b2, eps=self.eps),
      optax.add_decayed_weights(self.weight_decay),
    )
    # Never apply a non-finite gradient. The trainer stops after too many of
    # them.
    return optax.apply_if_finite(chain, max_consecutive_errors=2**31 - 1)

  def rate(self, step: int, num_updates: int, held: int = 0) -> float:
    """Returns the learning rate of update `step`, counted from 0.

    Args:
      step: the update of the round.
      num_updates: the length of the round.
      held: how many updates come before the decay; by default as many as the
        warm-up has. A longer warm-up ends where the decay begins.
    """
    start = held or self.warmup
    risen = min(step, start - 1) + 1
    warm = min(risen / self.warmup, 1) if self.warmup else 1
    part = max(step - start, 0) / max(num_updates - start, 1)
    factor = {
      "constant": 1.0,
      "linear": 1.0 - part,
      "cosine": 0.5 * (1 + math.cos(math.pi * part)),
    }[self.decay]
    return self.learning_rate * warm * factor

  def second_moments(self, opt_state: optax.OptState) -> Params:
    """Returns Adam's moving average of squared gradients, bias-corrected.

    Args:
      opt_state: the state of `transformation`.

    Returns:
      A tree like the trained one.
    """
    adam = _adam(opt_state)
    # Before the first update, the moments and their bias correction are 0. Then
    # divide by 1, because 0 divided by 0 would give NaN.
    count = jnp.asarray(adam.count)
    seen = jnp.where(count > 0, 1 - self.b2**count, 1.0)
    return jax.tree.map(lambda nu: nu / seen, adam.nu)


def like_params(opt_state: Any) -> Any:
  """Returns a part of an optimizer's state that has the tree of the weights.

  Args:
    opt_state: the state, or the shardings of its arrays.
  """
  return _adam(opt_state).mu


def applied(opt_state: optax.OptState) -> Int[Array, ""]:
  """Returns how many updates an optimizer with this state has applied."""
  return jnp.asarray(_adam(opt_state).count)


def _adam(opt_state: optax.OptState) -> optax.ScaleByAdamState:
  """Finds the part of an optimizer's state that belongs to Adam."""
  states = jax.tree.leaves(
    opt_state, is_leaf=lambda s: isinstance(s, optax.ScaleByAdamState)
  )
  return next(s for s in states if isinstance(s, optax.ScaleByAdamState))
