"""Teachers, and the classifiers that judge or teach their students."""

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
  discrete_steps: int = 0,  # continuous time [PD code]
  warmup: int = 1000,  # [PD code]
  judged: bool = True,  # [ours]
) -> None:
  """A teacher as Salimans & Ho 2022 train one, and a classifier to judge by.

  Deviations: ours clips the gradient after the mean over devices, where the
  released code clips on each device before it; our EMA has a ramp, see
  training/ema.py.

  Args:
    config: whose stages are set.
    num_updates: the main text of the paper states none.
    learning_rate, batch_size, weight_decay: see the data set's file.
    weighting, discrete_steps, warmup: of the paper unless said otherwise.
    judged: whether there is a classifier; not of images without labels.
  """
  config.run, config.stages = (), {}
  config.sampler = {
    "kind": "ddim",
    "grid": "uniform",
    "clip": True,
  }  # [PD code]
  config.guidance = {"weight": 0.0, "interval": (0.0, 1.0)}
  if judged:
    add_stage(config, "classifier", classifier_stage())
  add_stage(
    config,
    "teacher",
    {
      "source": "",  # imported:PATH for a teacher made elsewhere
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


# The process and the output of Ho et al. 2020.
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
  remat: bool = False,
  dtype: str = "float32",
) -> None:
  """The teacher of Luhman & Luhman 2021: Ho et al.'s model and DDIM from it.

  Deviations: trained here, with settings of [ours], where the paper took
  published weights; see `teacher`.

  Args:
    config: whose model, sampler and stages are set.
    multipliers: of the network's channels, one per level [DS code].
    grid: of the sampler's times [DS code].
    first_time: where it begins, see sampling/sampler.py.
    num_updates, learning_rate, batch_size, dropout: [ours].
    judged: see `teacher`.
    remat, dtype: of the network [ours].
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
    weighting="snr",  # the error of eps [ours]
    discrete_steps=1000,  # [DS code]
    warmup=5000,  # [ours]
    judged=judged,
  )
  config.sampler = {
    "kind": "ddim",
    "grid": grid,
    "first_time": first_time,
    "clip": False,  # but for the stored image [DS code]
  }


def classifier_stage() -> Fields:
  """The judge of a run: [ours]; no paper's FID is measured with it."""
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
  """A second classifier, of other random numbers, for students to learn from.

  So that no student is judged by the network that it was trained to please.
  """
  add_stage(config, "expert", classifier_stage())
