"""Students of one jump from t to s: flow maps, MeanFlow and sCM [ours].

The numbers that a function does not take are those of the objective, see
objectives/flow_map.py, mean_flow.py and scm.py.
"""

from typing import Any

from diffdistill.configs.recipes.stages import Fields, add_stage


def flow_map(
  config: Any, *, identity: str, optimizer: Fields, **stage: Any
) -> None:
  """Adds the stage "flow_map": distillation by one of the three identities.

  Args:
    config: a config with a teacher, whose network has two times.
    identity: "lagrangian", "eulerian" or "semigroup".
    optimizer: the fields of the optimizer.
    stage: other fields of the stage, such as num_updates and batch_size.
  """
  objective = {"kind": "flow_map", "identity": identity, "equal": 0.25}
  _add(config, "flow_map", objective, {"kind": "flow_map"}, optimizer, stage)


def mean_flow(config: Any, *, optimizer: Fields, **stage: Any) -> None:
  """Adds the stage "mean_flow": average velocities from data, Geng et al. 2025.

  Args:
    config: a config with a teacher, whose weights the student starts with, and
      whose network has two times.
    optimizer: the fields of the optimizer.
    stage: other fields of the stage, such as num_updates and batch_size.
  """
  objective = {"kind": "mean_flow", "tangent": "data", "equal": 0.75}
  _add(config, "mean_flow", objective, {"kind": "flow_map"}, optimizer, stage)


def scm(
  config: Any, *, kind: str, warmup: int, optimizer: Fields, **stage: Any
) -> None:
  """Adds a stage of sCM, Lu & Song 2024, named as its kind.

  Args:
    config: a config with a teacher, whose weights the student starts with.
    kind: "scm_distillation" or "scm_training".
    warmup: the updates in which the tangent's second part grows to its size.
    optimizer: the fields of the optimizer.
    stage: other fields of the stage, such as num_updates and batch_size.
  """
  objective = {"kind": kind, "warmup": warmup, "floor": 0.1}
  sampler = {"kind": "renoising", "grid": "uniform", "clip": True}
  _add(config, kind, objective, sampler, optimizer, stage)


def _add(
  config: Any,
  name: str,
  objective: Fields,
  sampler: Fields,
  optimizer: Fields,
  stage: Fields,
) -> None:
  add_stage(
    config,
    name,
    {
      "objective": objective,
      "sampler": sampler,
      "optimizer": optimizer,
      "frozen": {"teacher": "teacher"},
      **stage,
    },
  )
