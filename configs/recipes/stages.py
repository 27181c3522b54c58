"""The parts that all recipes share: stages' fields and configs' sections."""

from typing import Any

Fields = dict[str, Any]


def add_stage(config: Any, name: str, stage: Fields) -> None:
  """Adds a stage to the end of a run.

  The stage also gets the fields that no paper sets, because the command line
  can change only fields that exist.
  """
  stage = {"minutes": 0.0, **stage}
  if stage.get("kind") != "pairs":
    stage = {
      "accumulate": 1,
      "updates_per_call": 1,
      "teacher_dtype": "float32",
      **stage,
    }
    if stage["objective"]["kind"] != "classification":
      # By default a stage does not judge images to select its best weights.
      never = {"by": "distance", "every": 0, "patience": 0, "num_images": 1000}
      stage = {"select": never, **stage}
  config.run = (*config.run, name)
  config.stages[name] = stage


def add_student(
  config: Any,
  name: str,
  *,
  objective: Fields,
  sampler: Fields,
  optimizer: Fields,
  teacher: str = "teacher",
  **stage: Any,
) -> None:
  """Adds a stage whose student learns from a teacher or begins as its copy.

  Args:
    config: a config with a teacher.
    name: the name of the stage.
    objective, sampler, optimizer: the fields of these sections.
    teacher: the stage of the teacher; empty for a student without one.
    stage: the other fields of the stage, such as num_updates.
  """
  sections: Fields = {
    "objective": objective,
    "sampler": sampler,
    "optimizer": optimizer,
  }
  if teacher:
    sections["frozen"] = {"teacher": teacher}
  add_stage(config, name, {**sections, **stage})


def shared(
  *, log: int = 100, checkpoint: int = 5000, observe: int = 0
) -> Fields:
  """The sections that are the same in every config.

  Args:
    log: updates between two records of metrics.
    checkpoint: updates between two checkpoints.
    observe: updates between two sample sheets; 0 for one after each round only.
  """
  return {
    "seed": 0,
    "mesh": {
      "data": -1,
      "fsdp": 1,
      "overrides": (),
      # The devices that hold a tree in parts: "none", "fsdp" or "all".
      "frozen": "fsdp",
      "trained": "fsdp",
      "optimizer": "fsdp",
    },
    "writer": "if_installed",  # or tensorboard, wandb, none
    "cadence": {
      "log": log,
      "checkpoint": checkpoint,
      "observe": observe,
      "keep": 2,
      "max_skipped": 50,
      "stall_seconds": 600,
    },
    "evaluation": {
      "num_images": 50_000,
      "num_steps": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
      "batch_size": 500,
      "seed": 0,
      "gap_images": 500,
      "inception": "",  # the file of the FID network's weights, if any
      "reference": "",  # the .npz file of the data's FID statistics, if any
    },
  }


def choose(recipe: str, recipes: dict[str, str]) -> str:
  """Returns the recipe; refuses it in one line if it is none of `recipes`."""
  if recipe not in recipes:
    raise ValueError(f"recipe is {recipe!r}; pass one of {', '.join(recipes)}")
  return recipe


def proportional_warmups(config: Any) -> None:
  """Makes each warm-up change with num_updates on the command line.

  The optimizer has a warm-up, and so has the objective of sCM. Use it for small
  data sets, because people shorten their stages to try them. Recipes of
  published settings keep the published warm-ups. Call it last, because it
  changes only the stages that exist.
  """
  for stage in config.stages.values():
    for name in ("optimizer", "objective"):
      warmup = stage.get(name, {}).get("warmup", 0)
      if warmup:
        length = stage.get_ref("num_updates")
        stage[name].warmup = length * warmup // stage.num_updates


def by_the_clock(
  config: Any,
  minutes: float,
  parts: dict[str, float],
  most: int,
  rest: float = 1.0,
) -> None:
  """Ends every stage by the clock, after its share of the minutes.

  Unlike the papers, whose stages have numbers of updates, the learning rate is
  held for a quarter of each round and then annealed: see training/clock.py.

  Args:
    config: has all its stages; --config.minutes then changes the minutes of
      all.
    minutes: the total time of training, without compiling.
    parts: the relative length of each stage.
    most: the largest number of updates of a round, at any speed.
    rest: the relative length of each stage that `parts` does not name.
  """
  config.minutes = minutes
  total = config.get_ref("minutes")
  shares = {name: parts.get(name, rest) for name in config.run}
  for name, share in shares.items():
    stage = config.stages[name]
    stage.minutes = total * (share / sum(shares.values()))
    if stage.get("kind") != "pairs":
      stage.num_updates = most
