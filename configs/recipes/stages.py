"""The parts that all recipes share: fields of a stage, sections of a run."""

from typing import Any

Fields = dict[str, Any]


def add_stage(config: Any, name: str, stage: Fields) -> None:
  """One more stage, after those there are.

  It has the fields of its kind of stage that are no paper's, so that the
  command line can change them.
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
      # Images are judged every so many updates, and the best weights kept.
      never = {"by": "distance", "every": 0, "patience": 0, "num_images": 1000}
      stage = {"select": never, **stage}
  config.run = (*config.run, name)
  config.stages[name] = stage


def shared(
  *, log: int = 100, checkpoint: int = 5000, observe: int = 0
) -> Fields:
  """The sections of every config, which the command line can then change."""
  return {
    "seed": 0,
    "mesh": {"data": -1, "fsdp": 1, "overrides": ()},
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
      "inception": "",  # the file of the FID network's weights
      "reference": "",  # an .npz of its statistics of the data
    },
  }


def choose(recipe: str, recipes: dict[str, str]) -> str:
  """The recipe itself, or one line that names those there are."""
  if recipe not in recipes:
    raise ValueError(f"recipe is {recipe!r}; pass one of {', '.join(recipes)}")
  return recipe


def proportional_warmups(config: Any) -> None:
  """Lets each warm-up keep its share of num_updates when that is changed.

  For small data sets, whose stages people shorten to try them; published
  warm-ups are left as they are. Called when the stages are complete.
  """
  for stage in config.stages.values():
    warmup = stage.get("optimizer", {}).get("warmup", 0)
    if warmup:
      length = stage.get_ref("num_updates")
      stage.optimizer.warmup = length * warmup // stage.num_updates


def by_the_clock(
  config: Any, minutes: float, parts: dict[str, float], most: int
) -> None:
  """Ends every stage by the clock, at its part of the minutes.

  Unlike the papers, whose stages have numbers of updates: the learning rate is
  held for a quarter of each round and annealed from there, see
  training/clock.py.

  Args:
    config: whose stages are all there; --config.minutes changes all of them.
    minutes: of training, compiling not counted.
    parts: of each stage.
    most: updates of a round that trains, however fast.
  """
  config.minutes = minutes
  total = config.get_ref("minutes")
  for name in config.run:
    stage = config.stages[name]
    stage.minutes = total * (parts[name] / sum(parts.values()))
    if stage.get("kind") != "pairs":
      stage.num_updates = most
