"""LSUN bedrooms or churches, at 128x128 or at 256x256.

  diffdistill train --config=lsun:bedroom --workdir=runs/bedroom

At 128x128 as Salimans & Ho 2022 distilled them, on 64 TPUv4 chips: their FID
curves are in a figure that was not readable to us. At 256x256 as Luhman &
Luhman 2021 did, on a TPUv2-8: we found no FID. We quote none and have measured
none. Prepare the data once with TFDS, in a format of random access:
tfds.builder("lsun/bedroom", file_format="array_record").download_and_prepare()
LSUN has one class, so there is no classifier to judge by: use a run's sample
sheets.

At 256x256 the pairs would take 605 GB. Stored without their noise, which is
drawn again when it is read, they take 202; the recipes have these in a rolling
pool of 100 GB at a time. --config.stages.pairs.max_gigabytes=0 keeps them all.

Deviations, besides those that recipes/ states:
  bedroom, church         none.
  bedroom256, church256   Unlike the paper, the teacher is trained here, and an
                          epoch is one of the pool, not of all pairs.
"""

from ml_collections import ConfigDict

from diffdistill.configs import recipes

RECIPES = {
  "bedroom": "Salimans & Ho 2022, 1024 -> 1 steps, their U-Net of 139.6M",
  "church": "the same on lsun/church_outdoor",
  "bedroom256": "Luhman & Luhman 2021, 1 step, their U-Net of 113.7M",
  "church256": "the same on lsun/church_outdoor",
}


def get_config(recipe: str = "bedroom") -> ConfigDict:
  """The recipe of that name; sources as in recipes/."""
  recipes.choose(recipe, RECIPES)
  bedroom, large = recipe.startswith("bedroom"), recipe.endswith("256")
  config = ConfigDict(recipes.shared())
  config.data = {
    # Centre crop, antialiased bilinear resize [PD code; at 256 ours].
    "source": {
      "kind": "tfds",
      "name": "lsun/bedroom" if bedroom else "lsun/church_outdoor",
      "split": "train",
      "image_size": 256 if large else 128,
      "resize": "bilinear",
      "channels": 3,
      "classes": 1,
    },
    "flip": True,  # [PD code; at 256 ours]
    "conditional": False,  # [PD code], [DS code]
  }
  if large:
    # 50 epochs or 40 [DS code].
    _denoising_student(config, num_updates=1_600_000 if bedroom else 1_280_000)
  else:
    _progressive(config)
  return config


def _progressive(config: ConfigDict) -> None:
  """At 128x128."""
  config.model = {
    "network": {  # [PD code]
      "kind": "unet",
      "style": "film",
      "channels": 64,
      "multipliers": (1, 2, 4, 6, 8),
      "num_blocks": 3,
      "attention": (8, 16, 32),
      "head_dim": 64,
      "embed_dim": 768,
      "dropout": 0.1,  # of the teacher; students are trained without
      "remat": True,
      "dtype": "bfloat16",  # [ours]; on TPU the code's products are bfloat16
    },
    "schedule": {  # [PD code]
      "kind": "cosine",
      "logsnr_min": -20.0,
      "logsnr_max": 20.0,
    },
    "output": "both",  # [PD code]
    "label_dropout": 0.0,
  }
  recipes.teacher(
    config,
    num_updates=550_000,  # [ours]
    learning_rate=3e-4,  # [PD code]
    batch_size=2048,  # [PD code]
    weight_decay=0.0,  # [PD code]
    judged=False,
  )
  recipes.progressive(
    config,
    learning_rate=1e-4,  # [PD code]
    batch_size=2048,  # [PD code]
    start_steps=1024,  # [PD], section 5.2
  )


def _denoising_student(config: ConfigDict, num_updates: int) -> None:
  """At 256x256."""
  recipes.ddpm_teacher(
    config,
    multipliers=(1, 1, 2, 2, 4, 4),  # [DS code]
    grid="uniform_indices",  # [DS code]
    first_time=0.981,  # index 980 [DS code]
    num_updates=1_000_000,  # [ours]
    learning_rate=2e-5,  # [ours]
    batch_size=64,  # [ours]
    dropout=0.0,  # [ours]
    judged=False,
    remat=True,
    dtype="bfloat16",
  )
  config.evaluation.num_steps = (1, 2, 4, 8, 16, 32, 50)
  recipes.denoising_student(
    config,
    pairs={
      "num_steps": 50,  # [DS code]
      "num_pairs": 1_024_000,  # [DS code]
      "held_out": 2560,  # [DS code]
      "shard_size": 2560,  # [DS code]
      "batch_size": 64,  # [ours]
      "store_noise": False,  # [ours]
      "max_gigabytes": 100.0,  # [ours]
    },
    optimizer={
      "learning_rate": 5e-6,  # [DS code]
      "warmup": 1000,  # [DS code]
      "b1": 0.98,  # [DS code]
      "b2": 0.999,  # [DS code]
      "ema_decay": 0.9995,  # [DS code]
    },
    num_updates=num_updates,
    batch_size=32,  # [DS code]
    norm="l2",  # [DS code]
    select_every=6400,  # 80 shards [DS code]
  )
