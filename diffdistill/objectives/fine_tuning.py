"""More training of a finished teacher, on the loss that made it."""

import dataclasses
from collections.abc import Mapping

from diffdistill.objectives.denoising import Denoising
from diffdistill.objectives.objective import Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuning(Denoising):
  """More pre-training of a teacher, from its weights on (Salimans & Ho 2022).

  With a learning rate of 0 the teacher stays as it is and only Adam's second
  moments are estimated: what an imported teacher lacks for
  `ParameterMomentMatching`.
  """

  @property
  def trees(self) -> Mapping[str, Tree]:
    return {"teacher": Tree(start="teacher")}

  @property
  def starts(self) -> tuple[str, ...]:
    return ("teacher",)
