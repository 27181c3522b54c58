"""Papers from one teacher on one GPU, where every stage ends by the clock."""

import functools
from collections.abc import Callable
from typing import Any

from diffdistill.configs.recipes.classifier_features import classifier_features
from diffdistill.configs.recipes.compared_jumps import jump
from diffdistill.configs.recipes.denoising_student import denoising_student
from diffdistill.configs.recipes.moment_matching import moment_matching
from diffdistill.configs.recipes.progressive import progressive
from diffdistill.configs.recipes.score_identity import score_identity
from diffdistill.configs.recipes.stages import Fields
from diffdistill.configs.recipes.teachers import COSINE, expert, teacher


def gpu_model(**changed: Any) -> Fields:
  """The U-Net of Salimans & Ho 2022 with half the channels, and its output.

  Args:
    changed: the fields of the network that differ from ours.
  """
  network = {
    "kind": "unet",
    "style": "film",
    "channels": 128,
    "multipliers": (1, 1, 1),
    "num_blocks": 2,
    "patch": 1,
    "attention": (8, 16),
    "num_heads": 1,
    "embed_dim": 512,
    "dropout": 0.1,
    "remat": "none",
    "dtype": "bfloat16",
  }
  return {
    "network": {**network, **changed},
    "schedule": COSINE,
    # The output is not x0: at low noise x0 is nearly the input, which a network
    # in bfloat16 cannot copy exactly.
    "output": "v",
    "label_dropout": 0.0,
  }


def four_papers(
  config: Any,
  *,
  batch_size: int,
  start_steps: int,
  select_every: int,
  pairs: Fields,
) -> None:
  """Adds a classifier, a teacher, and students of the first four papers [ours].

  Args:
    config: a config with data and a model.
    batch_size: for the teacher and every student.
    start_steps: the steps of the teacher of the first halving round.
    select_every: updates between two scores that select a student.
    pairs: the fields as in `denoising_student`.
  """
  teacher(
    config,
    num_updates=1,
    learning_rate=8e-4,
    batch_size=batch_size,
    weight_decay=0.0,
    warmup=200,
  )
  config.stages.teacher.optimizer.decay = "linear"
  config.stages.teacher.optimizer.ema_decay = 0.999
  progressive(
    config, learning_rate=4e-4, batch_size=batch_size, start_steps=start_steps
  )
  expert(config)
  classifier_features(
    config,
    classifier="expert",
    learning_rate=2e-4,
    batch_size=batch_size,
    decay="linear",
  )
  moments(config, "moment_matching", (8, 4), batch_size, select_every)
  denoising_student(
    config,
    pairs=pairs,
    optimizer={
      "learning_rate": 4e-4,
      "warmup": 100,
      "decay": "linear",
      "b1": 0.9,
      "b2": 0.98,  # [DS code]
      "ema_decay": 0.995,  # [DS code]
    },
    num_updates=1,
    batch_size=batch_size,
    norm="l1",  # [DS code]
    form="x0",
    select_every=500,
  )
  for name in ("classifier", "expert"):
    stage = config.stages[name]
    stage.batch_size = 512
    stage.objective.crop = 4
    stage.optimizer.weight_decay = 0.05


def moments(
  config: Any,
  kind: str,
  num_steps: tuple[int, ...],
  batch_size: int,
  select_every: int,
) -> None:
  """Adds a stage of moment matching, of either kind [ours]."""
  moment_matching(
    config,
    kind,
    learning_rate=2e-4,
    num_steps=num_steps,
    batch_size=batch_size,
    select_every=select_every,
    select_images=5000,
    warmup=100,
    ema_decay=0.998,
  )


def later_papers(config: Any, batch_size: int) -> None:
  """Adds a student of every later paper [ours]; call it after `four_papers`.

  The network needs two times.

  Args:
    config: has the stages "teacher" and "pairs".
    batch_size: for every student.
  """
  for add in LATER.values():
    add(config, batch_size)


def _parameter_moments(config: Any, batch_size: int) -> None:
  moments(config, "parameter_moment_matching", (8,), batch_size, 500)


def _student(name: str, config: Any, batch_size: int) -> None:
  """Adds a student of `compared_jumps`."""
  jump(config, name, learning_rate=2e-4, batch_size=batch_size, num_updates=1)


def _easy_consistency(config: Any, batch_size: int) -> None:
  _student("easy_consistency", config, batch_size)
  # With 4 stages, neighbouring noise levels come as close as 16 to 15. Nearer
  # ones need more updates than fit into a minute.
  config.stages.easy_consistency.objective.neighbours.stages = 4


def _multistep(config: Any, batch_size: int) -> None:
  _student("multistep", config, batch_size)
  config.stages.multistep.num_steps = (4, 2)


def _score_identity(config: Any, batch_size: int) -> None:
  score_identity(
    config,
    first_time=0.758,  # sigma/alpha is 2.5 on the cosine schedule
    learning_rate=5e-5,
    batch_size=batch_size,
    num_updates=1,
    warmup=100,
    decay="linear",
    clip=1.0,
    ema_decay=0.998,
    slack=1.0,
  )


# How each later paper joins: the kind of its objective, and the function that
# adds its stage. A test compares the kinds with the table of the objectives.
LATER: dict[str, Callable[[Any, int], None]] = {
  "parameter_moment_matching": _parameter_moments,
  "consistency_distillation": functools.partial(_student, "consistency"),
  "consistency_training": _easy_consistency,
  "multistep_consistency": _multistep,
  "reflow": functools.partial(_student, "reflow"),
  "flow_map": functools.partial(_student, "flow_map"),
  "mean_flow": functools.partial(_student, "mean_flow"),
  "scm_distillation": functools.partial(_student, "scm_distillation"),
  "scm_training": functools.partial(_student, "scm_training"),
  "score_identity": _score_identity,
}
