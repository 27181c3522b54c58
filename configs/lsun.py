"""LSUN bedrooms or churches at 128x128, as Salimans & Ho 2022 distilled them.

  diffdistill train --config=configs/lsun.py:bedroom --workdir=runs/bedroom

Hardware: the paper used 64 TPUv4 chips; its FID curves are in its figure only
and we quote none. Prepare the data once with TFDS, in a format of random
access: tfds.builder("lsun/bedroom", file_format="array_record")
.download_and_prepare(). LSUN has one class, so there is no classifier to judge
by: use a run's sample sheets.
"""

from ml_collections import ConfigDict

from configs import recipes

SUBSETS = {"bedroom": "lsun/bedroom", "church": "lsun/church_outdoor"}
RECIPES = {
  "bedroom": "Salimans & Ho 2022, 1024 -> 1 steps, their U-Net of 139.6M",
  "church": "the same on lsun/church_outdoor",
}


def get_config(recipe: str = "bedroom") -> ConfigDict:
  """The recipe of that name; sources as in recipes.py."""
  recipes.choose(recipe, RECIPES)
  config = ConfigDict(recipes.shared())
  config.data = {
    "source": {  # centre crop, antialiased bilinear resize [code]
      "kind": "tfds",
      "name": SUBSETS[recipe],
      "split": "train",
      "image_size": 128,
      "resize": "bilinear",
    },
    "flip": True,  # [code]
    "conditional": False,  # [code]
  }
  config.model = {
    "network": {  # [code]
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
    "schedule": {"kind": "cosine", "logsnr_min": -20.0, "logsnr_max": 20.0},
    "output": "both",  # [code]
  }
  recipes.progressive(
    config,
    teacher_updates=550_000,  # [ours]
    teacher_rate=3e-4,
    student_rate=1e-4,
    batch_size=2048,
    weight_decay=0.0,
    start_steps=1024,
  )
  config.run = ("teacher", "halve")
  del config.stages["classifier"]
  return config
