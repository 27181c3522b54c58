"""CIFAR-10, 32x32, unconditional, as Salimans & Ho 2022 distilled it.

  diffdistill train --workdir=runs/cifar10 \\
    --config=configs/cifar10.py:progressive

Hardware: the paper used 8 TPUv4 chips. Published FID at 1/2/4/8 steps: 9.12,
4.51, 3.00, 2.57 (its Table 2); not measured by us. The data is a folder of PNG
files in `data/cifar10/{train,test}/<class>/`, or any source of 32x32 images:
--config.data.source.path says where.
"""

from ml_collections import ConfigDict

from configs import recipes

RECIPES = {
  "progressive": "Salimans & Ho 2022, 8192 -> 1 steps, their U-Net of 60.0M",
}


def get_config(recipe: str = "progressive") -> ConfigDict:
  """The recipe of that name; sources as in recipes.py."""
  recipes.choose(recipe, RECIPES)
  config = ConfigDict(recipes.shared())
  config.data = {
    "source": {
      "kind": "folder",
      "path": "data/cifar10",
      "split": "train",
      "image_size": 32,
    },
    "flip": True,  # [paper, section 5.1; code]
    "conditional": False,  # [code]
  }
  config.model = {
    "network": {  # [code]
      "kind": "unet",
      "style": "film",
      "channels": 256,
      "multipliers": (1, 1, 1),
      "num_blocks": 3,
      "attention": (8, 16),
      "num_heads": 1,
      "embed_dim": 1024,
      # 0.2 for the teacher; students are trained without, as we never switch
      # dropout on when distilling.
      "dropout": 0.2,
      "remat": False,
      "dtype": "float32",
    },
    "schedule": {"kind": "cosine", "logsnr_min": -20.0, "logsnr_max": 20.0},
    "output": "x0",  # [code]
  }
  config.classifier = {
    "kind": "resnet",
    "channels": 64,
    "multipliers": (1, 2, 4),
    "num_blocks": 2,
    "dropout": 0.1,
  }
  recipes.progressive(
    config,
    teacher_updates=800_000,  # [ours]
    teacher_rate=2e-4,
    student_rate=5e-5,
    batch_size=128,
    weight_decay=1e-3,
    start_steps=8192,
  )
  return config
