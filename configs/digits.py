"""scikit-learn's handwritten digits, 8x8, no download.

make demo
diffdistill train --config=configs/digits.py:progressive --workdir=runs/digits
"""

from ml_collections import ConfigDict

RECIPES = {
  "progressive": "Salimans & Ho 2022, 32 -> 1 steps, minutes on 2 CPU cores",
}


def get_config(recipe: str = "progressive") -> ConfigDict:
  """The recipe of that name."""
  if recipe not in RECIPES:
    raise ValueError(f"recipe is {recipe!r}; pass one of {', '.join(RECIPES)}")
  config = ConfigDict()
  config.seed = 0
  config.run = ("classifier", "teacher", "halve")
  config.mesh = {"data": -1, "fsdp": 1}
  config.cadence = {"log": 100, "checkpoint": 500, "observe": 0}
  config.data = {"source": {"kind": "digits", "split": "train"}}
  config.model = {
    "network": {
      "kind": "unet",
      "channels": 32,
      "multipliers": (1,),
      "num_blocks": 2,
      "patch": 2,
      "attention": (),
      "style": "film",
    },
    "schedule": {"kind": "cosine"},
    "output": "v",
  }
  config.sampler = {"kind": "ddim"}
  config.classifier = {
    "kind": "resnet",
    "channels": 16,
    "multipliers": (1, 2),
    "num_blocks": 1,
  }
  config.stages = {
    "classifier": {
      "objective": {"kind": "classification"},
      "optimizer": {"learning_rate": 2e-3, "decay": "linear"},
      "num_updates": 300,
      "batch_size": 128,
    },
    "teacher": {
      "objective": {"kind": "denoising", "weighting": "truncated_snr"},
      "optimizer": {
        "learning_rate": 2e-3,
        "warmup": 100,
        "decay": "cosine",
        "ema_decay": 0.995,
      },
      "num_updates": 3000,
      "batch_size": 128,
    },
    "halve": {
      "objective": {"kind": "progressive", "weighting": "truncated_snr"},
      "optimizer": {"learning_rate": 1e-3, "decay": "linear"},
      "num_updates": 500,
      "batch_size": 128,
      "frozen": {"teacher": "teacher"},
      "start_steps": 32,
      "end_steps": 1,
    },
  }
  config.evaluation = {
    "num_images": 2000,
    "num_steps": (1, 2, 4, 8, 16, 32, 64, 128),
    "batch_size": 500,
  }
  return config
