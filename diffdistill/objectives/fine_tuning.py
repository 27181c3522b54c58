"""Fine-tuning: more training of a finished teacher with the denoising loss."""

import dataclasses
from collections.abc import Mapping

from diffdistill.objectives.denoising import Denoising
from diffdistill.objectives.objective import Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuning(Denoising):
  """More training of a finished teacher (Salimans & Ho 2022, Algorithm 1).

  With a learning rate of 0, the teacher does not change, and only Adam's second
  moments are estimated. `ParameterMomentMatching` needs these moments, and an
  imported teacher has none.
  """

  @property
  def trees(self) -> Mapping[str, Tree]:
    return {"teacher": Tree(start="teacher")}
