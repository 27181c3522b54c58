"""LSUN bedrooms or churches, at 128x128 or at 256x256.

  diffdistill train --config=lsun:bedroom --workdir=runs/bedroom

Salimans & Ho 2022 distilled 128x128 images on 64 TPUv4 chips; we could not read
the figure of their FID. Luhman & Luhman 2021 distilled 256x256 images on a
TPUv2-8; we found no FID. We have measured none. Prepare the data once with
TFDS, in a format of random access:
tfds.builder("lsun/bedroom", file_format="array_record").download_and_prepare()
LSUN has one class, so no classifier can judge: look at the sample sheets of a
run.

At 256x256 the pairs would take 605 GB on disk. The recipes do not store the
noise, which is drawn again when a pair is read, so that all pairs take 202 GB.
They keep at most 100 GB at a time, in a rolling pool;
--config.stages.pairs.max_gigabytes=0 keeps all pairs.

Deviations, besides those that recipes/ states:
  bedroom, church         none.
  bedroom256, church256   Unlike the paper, the teacher is trained here, and an
                          epoch is a pass over the pool, not over all pairs.
"""

from ml_collections import ConfigDict

from diffdistill.configs import recipes

RECIPES = {
  "bedroom": "Salimans & Ho 2022, 1024 -> 1 steps, their U-Net of 139.6M",
  "church": "Salimans & Ho 2022, on churches, 1024 -> 1 steps",
  "bedroom256": "Luhman & Luhman 2021, 1 step, their U-Net of 113.7M",
  "church256": "Luhman & Luhman 2021, on churches, 1 step",
}


def get_config(recipe: str = "bedroom") -> ConfigDict:
  """The config of one recipe; recipes/ lists the sources of the numbers."""
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
    # The updates take 50 epochs for bedrooms and 40 for churches [DS code].
    _denoising_student(config, num_updates=1_600_000 if bedroom else 1_280_000)
  else:
    _progressive(config)
  return config


def _progressive(config: ConfigDict) -> None:
  """Adds the recipe of Salimans & Ho 2022 for 128x128 images."""
  config.model = {
    "network": recipes.film_network(64, (1, 2, 4, 6, 8)),  # [PD code]
    "schedule": recipes.COSINE,  # [PD code]
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
  """Adds the recipe of Luhman & Luhman 2021 for 256x256 images."""
  recipes.ddpm_teacher(
    config,
    multipliers=(1, 1, 2, 2, 4, 4),  # [DS code]
    grid="uniform_indices",  # [DS code]
    first_time=0.981,  # DDPM's time step 980, from 0 to 999 [DS code]
    num_updates=1_000_000,  # [ours]
    learning_rate=2e-5,  # [ours]
    batch_size=64,  # [ours]
    dropout=0.0,  # [ours]
    judged=False,
    remat="all",
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
    select_every=6400,  # the updates of 80 shards [DS code]
  )
