"""CelebA at 64x64, as Luhman & Luhman 2021 distilled it.

  diffdistill train --workdir=runs/celeba \\
    --config=celeba:denoising_student

Hardware: the paper used a TPUv2-8. The published FID at 1 step is 10.68, quoted
from a review of the paper; we have not measured it. The data is a folder of the
aligned and cropped images, all in one class:

  unzip -j img_align_celeba.zip -d data/celeba/all

The pairs take 38 GB on disk, or 13 GB without their noise:
--config.stages.pairs.store_noise=False. There are no labels, so no classifier
can judge: look at the sample sheets of a run.

Deviations, besides those that recipes/ states: Unlike the paper, the teacher
is trained here. We do not know how the paper prepared its images: ours are the
centre square, resized by area.
"""

from ml_collections import ConfigDict

from diffdistill.configs import recipes

RECIPES = {
  "denoising_student": "Luhman & Luhman 2021, 1 step, their U-Net of 78.7M",
}


def get_config(recipe: str = "denoising_student") -> ConfigDict:
  """The config of one recipe; recipes/ lists the sources of the numbers."""
  recipes.choose(recipe, RECIPES)
  config = ConfigDict(recipes.shared())
  config.data = {
    "source": {
      "kind": "folder",
      "path": "data/celeba",
      "split": "train",
      "image_size": 64,
      "resize": "area",  # [ours]
    },
    "flip": True,  # [ours]
    "conditional": False,  # [DS code]
  }
  recipes.ddpm_teacher(
    config,
    multipliers=(1, 2, 2, 2, 4),  # [DS code]
    grid="quadratic_indices",  # [DS code]
    first_time=0.801,  # DDPM's time step 800, from 0 to 999 [DS code]
    num_updates=500_000,  # [ours]
    learning_rate=2e-4,  # [ours]
    batch_size=128,  # [ours]
    dropout=0.1,  # [ours]
    judged=False,
  )
  config.evaluation.num_steps = (1, 2, 4, 8, 16, 32, 64, 100)
  recipes.denoising_student(
    config,
    pairs={
      "num_steps": 100,  # [DS code]
      "num_pairs": 1_024_000,  # [DS code]
      "held_out": 10_240,  # [DS code]
      "shard_size": 25_600,  # [DS code]
      "batch_size": 512,  # [ours]
    },
    optimizer={
      "learning_rate": 5e-5,  # [DS code]
      "warmup": 5000,  # [DS code]
      "b1": 0.9,  # [DS code]
      "b2": 0.98,  # [DS code]
      "ema_decay": 0.995,  # [DS code]
    },
    num_updates=70_000,  # 35 epochs [DS code]
    batch_size=512,  # [DS code]
    norm="l2",  # [DS code]
    select_every=2000,  # the updates of an epoch [DS code]
  )
  return config
