"""The stages of teachers and classifiers, and what teachers predict."""

from typing import Any

from diffdistill.configs.recipes.networks import ddpm_network
from diffdistill.configs.recipes.stages import Fields, add_stage


def teacher(
  config: Any,
  *,
  num_updates: int,
  learning_rate: float,
  batch_size: int,
  weight_decay: float,
  weighting: str = "truncated_snr",  # recommended in [PD], section 5.1
  discrete_steps: int = 0,  # 0 means continuous time [PD code]
  warmup: int = 1000,  # [PD code]
  judged: bool = True,  # [ours]
) -> None:
  """Adds a teacher as in Salimans & Ho 2022, and a classifier that judges.

  Unlike the released code, which clips the gradient on each device before the
  mean over devices, ours clips after it. Unlike the paper, the EMA has a ramp:
  see training/averaged_weights.py.

  Args:
    config: a config, which gets its first stages, "classifier" and "teacher".
    num_updates: the updates of the teacher; the main text of the paper states
      none.
    learning_rate, batch_size, weight_decay: settings whose source is stated in
      the data set's file.
    weighting, discrete_steps, warmup: settings whose defaults are the paper's.
    judged: whether to add the classifier, which needs images with labels.
  """
  config.run, config.stages = (), {}
  # [PD code]
  config.sampler = {"kind": "ddim", "grid": "uniform", "clip": True}
  config.guidance = {
    "weight": 0.0,
    "interval": (0.0, 1.0),
    "together": False,  # True for one pass over twice the images
  }
  if judged:
    add_stage(config, "classifier", classifier_stage())
  add_stage(
    config,
    "teacher",
    {
      "source": "",  # or imported:PATH, for a teacher of another framework
      "objective": {
        "kind": "denoising",
        "weighting": weighting,
        "discrete_steps": discrete_steps,
      },
      "optimizer": {
        "learning_rate": learning_rate,
        "warmup": warmup,
        "decay": "constant",  # [PD code]
        "weight_decay": weight_decay,
        "clip": 1.0,  # [PD code]
        "ema_decay": 0.9999,  # [PD code]
      },
      "num_updates": num_updates,
      "batch_size": batch_size,
    },
  )


# The schedule of Salimans & Ho 2022 [PD code].
COSINE: Fields = {"kind": "cosine", "logsnr_min": -20.0, "logsnr_max": 20.0}
# The noise schedule and what the network predicts, in Ho et al. 2020.
DDPM_MEANING: Fields = {
  "schedule": {  # [DS code]
    "kind": "linear_beta",
    "num_steps": 1000,
    "beta_min": 1e-4,
    "beta_max": 0.02,
  },
  "output": "eps",  # [DS code]
  "precondition": {  # [DS code]
    "kind": "identity",
    "noise": "index",
    "num_steps": 1000,
  },
}


def ddpm_teacher(
  config: Any,
  *,
  multipliers: tuple[int, ...],
  grid: str,
  first_time: float,
  num_updates: int,
  learning_rate: float,
  batch_size: int,
  dropout: float,
  judged: bool,
  remat: str = "none",
  dtype: Any = "float32",
) -> None:
  """Adds the teacher of Luhman & Luhman 2021: a DDPM, sampled by DDIM.

  Unlike the paper, which used published weights, we train it here, with our own
  settings. The deviations that `teacher` states apply here too.

  Args:
    config: gets the model, the sampler, and the first stages as in `teacher`.
    multipliers: the network's channels at each level, divided by 128 [DS code].
    grid: the name of the sampler's grid of times [DS code].
    first_time: the time at which the sampler begins: see sampling/sampler.py.
    num_updates, learning_rate, batch_size, dropout: [ours].
    judged: whether to add a classifier, as in `teacher`.
    remat, dtype: fields of the network [ours].
  """
  config.model = {
    "network": ddpm_network(
      multipliers, dropout=dropout, remat=remat, dtype=dtype
    ),
    **DDPM_MEANING,
    "label_dropout": 0.0,
  }
  teacher(
    config,
    num_updates=num_updates,
    learning_rate=learning_rate,
    batch_size=batch_size,
    weight_decay=0.0,  # [ours]
    weighting="snr",  # makes the loss the error of eps [ours]
    discrete_steps=1000,  # [DS code]
    warmup=5000,  # [ours]
    judged=judged,
  )
  config.sampler = {
    "kind": "ddim",
    "grid": grid,
    "first_time": first_time,
    "clip": False,  # only images in stored pairs are clipped [DS code]
  }


def classifier_stage() -> Fields:
  """The classifier that judges a run [ours]; published FIDs do not use it."""
  return {
    "objective": {
      "kind": "classification",
      "label_smoothing": 0.0,
      "noise": 0.0,
      "crop": 0,
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


def expert(config: Any) -> None:
  """Adds a second classifier, "expert", from which students learn.

  Its random numbers differ from the judge's, so no student is judged by the
  classifier that it learned from.
  """
  add_stage(config, "expert", classifier_stage())
