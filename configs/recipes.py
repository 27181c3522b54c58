"""The papers' published settings, one function per paper.

Every number carries its source:
  [paper]  Salimans & Ho 2022, arXiv 2202.00512, main text
  [code]   its released code, google-research/diffusion_distillation, config/*
  [ours]   our choice where neither says
"""

from typing import Any

Fields = dict[str, Any]


def progressive(
  config: Any,
  *,
  teacher_updates: int,
  teacher_rate: float,
  student_rate: float,
  batch_size: int,
  weight_decay: float,
  start_steps: int,
) -> None:
  """Salimans & Ho 2022: a teacher, then rounds of halving.

  Deviations: ours clips the gradient after the mean over devices, where the
  released code clips on each device before it; ours anneals the learning rate
  as the paper says, which the released code leaves to its caller; our EMA of
  the teacher has a ramp, see training/ema.py.

  Args:
    config: whose stages are set.
    teacher_updates: of the teacher; the paper's main text states none.
    teacher_rate, student_rate: Adam's learning rates [code].
    batch_size: of both [code].
    weight_decay: of the teacher; none for students [code].
    start_steps: the teacher's before the first halving [paper, section 5.2].
  """
  config.run = ("classifier", "teacher", "halve")
  config.sampler = {"kind": "ddim", "grid": "uniform", "clip": True}  # [code]
  config.stages = {
    "classifier": classifier_stage(),
    "teacher": {
      # Truncated SNR: the paper's recommendation, section 5.1; continuous time
      # (train_num_steps = 0) [code].
      "objective": {
        "kind": "denoising",
        "weighting": "truncated_snr",
        "discrete_steps": 0,
      },
      "optimizer": {
        "learning_rate": teacher_rate,
        "warmup": 1000,  # [code]
        "decay": "constant",  # [code]
        "weight_decay": weight_decay,
        "clip": 1.0,  # [code]
        "ema_decay": 0.9999,  # [code]
        "accumulate": 1,
      },
      "num_updates": teacher_updates,
      "batch_size": batch_size,
    },
    "halve": {
      "objective": {"kind": "progressive", "weighting": "truncated_snr"},
      "optimizer": {
        "learning_rate": student_rate,
        "warmup": 0,  # [code]
        "decay": "linear",  # to zero over each round [paper, section 5.2]
        "weight_decay": 0.0,  # [code]
        "clip": 1.0,  # [code]
        "ema_decay": 0.0,  # [code]
        "accumulate": 1,
      },
      # Doubled for the 2-step and 1-step students [paper, section 5.2].
      "num_updates": 50_000,
      "long_rounds": 2,
      "batch_size": batch_size,
      "frozen": {"teacher": "teacher"},
      "start_steps": start_steps,
      "end_steps": 1,  # [paper, section 5.2]
    },
  }


def classifier_stage() -> Fields:
  """The judge of a run: [ours]; no paper's FID is measured with it."""
  return {
    "objective": {
      "kind": "classification",
      "label_smoothing": 0.0,
      "noise": 0.0,
    },
    "optimizer": {
      "learning_rate": 1e-3,
      "warmup": 100,
      "decay": "cosine",
      "weight_decay": 1e-2,
      "ema_decay": 0.0,
    },
    "num_updates": 20_000,
    "batch_size": 128,
  }


def shared(
  *, log: int = 100, checkpoint: int = 5000, observe: int = 0
) -> Fields:
  """What every config has, so that the command line can change it."""
  return {
    "seed": 0,
    "mesh": {"data": -1, "fsdp": 1},
    "cadence": {
      "log": log,
      "checkpoint": checkpoint,
      "observe": observe,
      "keep": 2,
      "max_skipped": 50,
    },
    "evaluation": {
      "num_images": 50_000,
      "num_steps": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
      "batch_size": 500,
      "seed": 0,
      "gap_images": 500,
    },
  }


def choose(recipe: str, recipes: dict[str, str]) -> str:
  """The recipe itself, or one line that names those there are."""
  if recipe not in recipes:
    raise ValueError(f"recipe is {recipe!r}; pass one of {', '.join(recipes)}")
  return recipe
