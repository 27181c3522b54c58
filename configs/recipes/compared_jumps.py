"""Students that jump along trajectories, at the budget of `compared` [ours].

They are consistency models, flow maps and straightened flows. Their times are
drawn uniformly where a paper's distribution is for larger images: it draws
strong noise rarely, which needs more updates than the budget has.
"""

import functools
from collections.abc import Callable
from typing import Any

from diffdistill.configs.recipes.consistency import (
  consistency_distillation,
  easy_consistency,
)
from diffdistill.configs.recipes.flow_maps import flow_map, mean_flow
from diffdistill.configs.recipes.multistep_consistency import (
  multistep_consistency,
)
from diffdistill.configs.recipes.reflow import reflow
from diffdistill.configs.recipes.scm import scm
from diffdistill.configs.recipes.stages import Fields

UNIFORM: Fields = {"kind": "uniform"}
# The first noise level is 32: every student of this sampler is trained there.
RENOISING: Fields = {
  "kind": "renoising",
  "grid": "uniform",
  "first_time": 0.98,
  "clip": True,
}
OPTIMIZER: Fields = {"decay": "linear", "clip": 1.0, "ema_decay": 0.99}
FEW, MORE = (1, 2, 4), (1, 2, 4, 8)


def compared_jumps(
  config: Any,
  *,
  budget: int,
  batch_size: int,
  learning_rate: float,
  own_rate: float,
  names: tuple[str, ...] = (
    *("consistency", "easy_consistency", "multistep", "reflow"),
    *("scm_distillation", "flow_map", "mean_flow"),
  ),
) -> None:
  """Adds students, each with the same number of network passes.

  Passes are counted as in `compared`. The network gets two times, which changes
  nothing for the other stages.

  Args:
    config: a config with a teacher; for "reflow" also with the stage "pairs",
      whose passes are part of its budget.
    budget: the passes of each student.
    batch_size: the images of a batch of each stage.
    learning_rate: for students whose target is mostly the teacher's.
    own_rate: for students whose target is mostly their own.
    names: the stages to add, names of `STUDENTS`.
  """
  config.model.network["two_times"] = True
  for name in names:
    left = budget
    if name == "reflow":
      pairs = config.stages.pairs
      left -= pairs.num_steps * (pairs.num_pairs + pairs.held_out)
    passes, own, _ = STUDENTS[name]
    jump(
      config,
      name,
      learning_rate=own_rate if own else learning_rate,
      batch_size=batch_size,
      num_updates=left // (batch_size * passes),
    )


def jump(
  config: Any,
  name: str,
  *,
  learning_rate: float,
  batch_size: int,
  num_updates: int,
) -> None:
  """Adds one student with settings for small images.

  Args:
    config: a config with a teacher; for flow maps with a network of two times,
      for "reflow" with the stage "pairs".
    name: the stage to add, a name of `STUDENTS`.
    learning_rate, batch_size, num_updates: settings of the student.
  """
  _, _, add = STUDENTS[name]
  add(
    config,
    learning_rate=learning_rate,
    batch_size=batch_size,
    num_updates=num_updates,
  )
  config.stages[name].optimizer.update(OPTIMIZER)


def _consistency(config: Any, **common: Any) -> None:
  consistency_distillation(config, num_steps=FEW, warmup=0, **common)
  stage = config.stages.consistency
  # Half of the published steps are almost without noise or almost without image
  # on small images, so they are drawn less often.
  stage.objective.neighbours = {
    **stage.objective.neighbours.to_dict(),
    "kind": "grid",
    "draw": {"kind": "lognormal", "mean": 0.5, "std": 1.8},
  }
  stage.sampler = RENOISING


def _easy_consistency(config: Any, **common: Any) -> None:
  easy_consistency(config, num_steps=FEW, stages=6, **common)
  stage = config.stages.easy_consistency
  stage.objective.weighting = "constant"
  stage.objective.neighbours.draw = UNIFORM
  stage.sampler = RENOISING


def _multistep(config: Any, **common: Any) -> None:
  # One segment is left out, since it is consistency distillation.
  multistep_consistency(
    config, num_steps=(8, 4, 2), first=16, last=64, warmup=100, **common
  )


def _reflow(config: Any, **common: Any) -> None:
  reflow(config, pairs="pairs", num_steps=MORE, warmup=100, **common)


def _scm(config: Any, kind: str, **common: Any) -> None:
  scm(config, kind, dropout=False, warmup=250, num_steps=FEW, **common)
  config.stages[kind].objective.draw = UNIFORM
  config.stages[kind].sampler = RENOISING


def _flow_map(config: Any, **common: Any) -> None:
  flow_map(config, num_steps=MORE, warmup=100, **common)


def _mean_flow(config: Any, **common: Any) -> None:
  mean_flow(
    config,
    from_teacher=True,
    dropout=False,
    draw=UNIFORM,
    num_steps=MORE,
    warmup=100,
    **common,
  )


# The table has, for each student, the passes of one image through the denoiser
# in an update, whether its target is mostly its own, and the function that adds
# its stage.
STUDENTS: dict[str, tuple[int, bool, Callable[..., None]]] = {
  "consistency": (6, False, _consistency),
  "easy_consistency": (4, True, _easy_consistency),
  "multistep": (5, False, _multistep),
  "reflow": (3, False, _reflow),
  "scm_distillation": (
    *(6, True),
    functools.partial(_scm, kind="scm_distillation"),
  ),
  "scm_training": (5, True, functools.partial(_scm, kind="scm_training")),
  "flow_map": (7, False, _flow_map),
  "mean_flow": (5, True, _mean_flow),
}
