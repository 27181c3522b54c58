"""More training of a finished teacher, on the loss that made it."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from diffdistill.arrays import Key, Params
from diffdistill.objectives.denoising import Denoising


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuning(Denoising):
  """More pre-training of a teacher, from its weights on (Salimans & Ho 2022).

  With a learning rate of 0 the teacher stays as it is and only Adam's second
  moments are estimated: what an imported teacher lacks for
  `ParameterMomentMatching`.
  """

  needs: ClassVar[tuple[str, ...]] = ("teacher",)

  def init(self, key: Key, frozen: Mapping[str, Params]) -> dict[str, Params]:
    return {"teacher": jax.tree.map(jnp.copy, frozen["teacher"])}
