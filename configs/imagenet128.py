"""ImageNet at 128x128, class-conditional, by moment matching.

  diffdistill train --workdir=runs/imagenet128 \\
    --config=imagenet128:moment_matching

Hardware: the paper used 256 TPUv5e chips. Published FID of moment_matching at
8 steps: 1.49, as a benchmark aggregator's page has it; of the other none that
we could read. Nothing is measured by us. Prepare the data once with TFDS, in a
format of random access:
tfds.builder("imagenet2012", file_format="array_record").download_and_prepare()

Deviations, besides those that recipes/ states: Unlike the paper, the schedule
is shifted as a whole from noise for 32x32 images, not interpolated between that
and the plain one; and the teacher's loss has one scale, not two. The UViT has
the stages of Heek et al. 2024 and their number of parameters; what they do not
tell of it is in networks/uvit.py. That its output is v, that labels are hidden
from the teacher now and then, and how the teacher is trained are [ours]; it is
not guided, but --config.guidance.weight=0.1 guides it. On NVIDIA GPUs
moment_matching also takes --config.model.network.attention=cudnn.
"""

from ml_collections import ConfigDict

from diffdistill.configs import recipes

RECIPES = {
  "moment_matching": (
    "Salimans et al. 2024, alternating, to 8, 4, 2, 1 steps, a UViT of 397.4M"
  ),
  "parameter_moment_matching": (
    "Salimans et al. 2024, in parameter space, to 8 and 4 steps, the same"
  ),
}


def get_config(recipe: str = "moment_matching") -> ConfigDict:
  """The recipe of that name; sources as in recipes/."""
  recipes.choose(recipe, RECIPES)
  config = ConfigDict(recipes.shared())
  config.data = {
    "source": {  # [ours]: centre crop, area resize as at 64x64
      "kind": "tfds",
      "name": "imagenet2012",
      "split": "train",
      "image_size": 128,
      "resize": "area",
      "channels": 3,
      "classes": 1000,
    },
    "flip": True,  # [ours]
    "conditional": True,  # [ours]
  }
  config.mesh.fsdp = -1  # of a slice: three networks and their moments [ours]
  config.model = {
    "network": recipes.uvit_network(128),
    "schedule": {
      "kind": "cosine",
      "logsnr_min": -20.0,
      "logsnr_max": 20.0,
      "shift_from": 32,  # noise of 32x32, from which the paper interpolates
    },
    "output": "v",  # [ours]
    "label_dropout": 0.1,  # [ours]
  }
  config.classifier = {
    "kind": "resnet",
    "channels": 64,
    "multipliers": (1, 2, 4, 8, 8),
    "num_blocks": 2,
    "dropout": 0.1,
  }
  recipes.teacher(
    config,
    num_updates=550_000,  # [ours]
    learning_rate=3e-4,  # [ours], as at 64x64
    batch_size=2048,  # [ours], as at 64x64
    weight_decay=0.0,  # [ours], as at 64x64
  )
  config.stages.classifier.batch_size = 1024  # a row for each of 256 chips
  if recipe == "moment_matching":
    recipes.moment_matching(config, learning_rate=1e-5)  # [ours]
  else:
    recipes.parameter_moment_matching(config, learning_rate=1e-5)  # [ours]
  return config
