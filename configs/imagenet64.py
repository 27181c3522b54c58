"""ImageNet at 64x64, class-conditional, as Salimans & Ho 2022 distilled it.

  diffdistill train --workdir=runs/imagenet64 \\
    --config=configs/imagenet64.py:progressive

Hardware: the paper used 64 TPUv4 chips. FID at 1/2/4/8 steps read off its
figure 4 (about 1 % error): 16.1, 7.36, 3.88, 2.95; not measured by us. Prepare
the data once with TFDS, in a format of random access:
tfds.builder("imagenet2012", file_format="array_record").download_and_prepare()
"""

from ml_collections import ConfigDict

from configs import recipes

RECIPES = {
  "progressive": "Salimans & Ho 2022, 1024 -> 1 steps, their U-Net of 295.9M",
}


def get_config(recipe: str = "progressive") -> ConfigDict:
  """The recipe of that name; sources as in recipes.py."""
  recipes.choose(recipe, RECIPES)
  config = ConfigDict(recipes.shared())
  config.data = {
    "source": {  # centre crop, area resize [code]
      "kind": "tfds",
      "name": "imagenet2012",
      "split": "train",
      "image_size": 64,
      "resize": "area",
    },
    "flip": True,  # [code]
    "conditional": True,  # [code]
  }
  config.model = {
    "network": {  # [code]
      "kind": "unet",
      "style": "film",
      "channels": 192,
      "multipliers": (1, 2, 3, 4),
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
  config.classifier = {
    "kind": "resnet",
    "channels": 64,
    "multipliers": (1, 2, 4, 8),
    "num_blocks": 2,
    "dropout": 0.1,
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
  return config
