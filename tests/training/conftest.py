"""A paper that is arithmetic."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import pytest


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeastSquares:
  """x (student + auxiliary / 10) against x teacher; nothing random in it.

  A NaN in a batch makes its gradient NaN. `traces` grows by the name at each
  trace; the metric "draw" shows which key the loss was given.
  """

  size: int = 6
  halves: bool = False
  traces: list = dataclasses.field(default_factory=list)

  trains: ClassVar = ("student", "auxiliary")
  needs: ClassVar = ("teacher",)
  sampler: ClassVar = None

  def init(self, key, frozen):
    keys = jax.random.split(key)
    return {
      name: {"w": jax.random.normal(key, (self.size, self.size))}
      for name, key in zip(self.trains, keys, strict=True)
    }

  def turn(self, step):
    return (self.trains[step % 2],)

  def loss(self, name, params, frozen, batch, key, hparams):
    self.traces.append(name)
    x = batch["image"].reshape(batch["image"].shape[0], -1)
    w = params["student"]["w"] + 0.1 * params["auxiliary"]["w"]
    error = x @ (w - frozen["teacher"]["w"])
    losses = jnp.mean(error**2, axis=1)
    one = jnp.ones(())
    metrics = {
      f"{name}/loss": (jnp.sum(losses), jnp.float32(x.shape[0])),
      f"{name}/draw": (jax.random.normal(key), one),
    }
    return jnp.mean(losses), metrics


@pytest.fixture(scope="session")
def least_squares():
  return LeastSquares
