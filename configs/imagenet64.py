"""ImageNet at 64x64, class-conditional: Salimans & Ho 2022 and moment matching.

  diffdistill train --workdir=runs/imagenet64 \\
    --config=imagenet64:progressive

Published FID by steps, and the hardware of the paper; nothing is measured by
us:
  progressive       16.1, 7.36, 3.88, 2.95 at 1, 2, 4, 8, read off the paper's
                    figure 4 (about 1 % error); 64 TPUv4 chips
  moment_matching   3.00, 3.86 at 1, 2 (a table of Lu & Song 2024) and 1.24 at 8
                    (a benchmark aggregator's page); 256 TPUv5e chips
  parameter_moment_matching
                    none that we could read; 256 TPUv5e chips

Deviations, besides those that recipes/ states for each paper:
  progressive       none.
  moment_matching, parameter_moment_matching
                    Unlike the paper, the schedule is the plain cosine, not one
                    interpolated from noise for 32x32. The UViT has the stages
                    of Heek et al. 2024 and their number of parameters; what
                    they do not tell of it is in networks/uvit.py. That its
                    output is v, that labels are hidden from the teacher now and
                    then, and how the teacher is trained are [ours]; it is not
                    guided, but --config.guidance.weight=0.1 guides it. On
                    NVIDIA GPUs moment_matching also takes
                    --config.model.network.attention=cudnn.

Prepare the data once with TFDS, in a format of random access:
tfds.builder("imagenet2012", file_format="array_record").download_and_prepare()
"""

from ml_collections import ConfigDict

from diffdistill.configs import recipes

RECIPES = {
  "progressive": "Salimans & Ho 2022, 1024 -> 1 steps, their U-Net of 295.9M",
  "moment_matching": (
    "Salimans et al. 2024, alternating, to 8, 4, 2, 1 steps, a UViT of 394.2M"
  ),
  "parameter_moment_matching": (
    "Salimans et al. 2024, in parameter space, to 8 and 4 steps, the same"
  ),
}


def get_config(recipe: str = "progressive") -> ConfigDict:
  """The recipe of that name; sources as in recipes/."""
  recipes.choose(recipe, RECIPES)
  config = ConfigDict(recipes.shared())
  config.data = {
    "source": {  # centre crop, area resize [PD code]
      "kind": "tfds",
      "name": "imagenet2012",
      "split": "train",
      "image_size": 64,
      "resize": "area",
      "channels": 3,
      "classes": 1000,
    },
    "flip": True,  # [PD code]
    "conditional": True,  # [PD code]
  }
  config.model = {
    "network": {  # [PD code]
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
    "schedule": {  # [PD code]
      "kind": "cosine",
      "logsnr_min": -20.0,
      "logsnr_max": 20.0,
    },
    "output": "both",  # [PD code]
    "label_dropout": 0.0,
  }
  config.classifier = {
    "kind": "resnet",
    "channels": 64,
    "multipliers": (1, 2, 4, 8),
    "num_blocks": 2,
    "dropout": 0.1,
  }
  recipes.teacher(
    config,
    num_updates=550_000,  # [ours]
    learning_rate=3e-4,  # [PD code]
    batch_size=2048,  # [PD code]
    weight_decay=0.0,  # [PD code]
  )
  config.stages.classifier.batch_size = 1024  # a row for each of 256 chips
  if recipe == "progressive":
    recipes.progressive(
      config,
      learning_rate=1e-4,  # [PD code]
      batch_size=2048,  # [PD code]
      start_steps=1024,  # [PD], section 5.2
    )
    return config
  config.mesh.fsdp = -1  # of a slice: three networks and their moments [ours]
  config.model.network = recipes.uvit_network(64)
  config.model.output = "v"  # [ours]
  config.model.label_dropout = 0.1  # [ours]
  if recipe == "moment_matching":
    recipes.moment_matching(config, learning_rate=1e-5)  # [ours]
  else:
    recipes.parameter_moment_matching(config, learning_rate=1e-5)  # [ours]
  return config
