"""ImageNet at 128x128, class-conditional, by moment matching.

  diffdistill train --workdir=runs/imagenet128 \\
    --config=imagenet128:moment_matching

Hardware: the paper used 256 TPUv5e chips. The published FID of moment_matching
at 8 steps is 1.49, quoted from a benchmark aggregator's page; we found none of
parameter_moment_matching, and have measured neither. Prepare the data once with
TFDS, in a format of random access:
tfds.builder("imagenet2012", file_format="array_record").download_and_prepare()

Deviations, besides those that recipes/ states: Unlike the paper, the schedule
is shifted as a whole from noise for 32x32 images, not interpolated between that
and the plain one; and the teacher's loss has one scale, not two. The UViT has
the stages and the number of parameters of Heek et al. 2024; networks/uvit.py
has what they do not say. Our own choices are that networks predict v, the label
dropout and the training of the teacher. The teacher is not guided;
--config.guidance.weight=0.1 guides it. On NVIDIA GPUs moment_matching also
takes --config.model.network.attention=cudnn.
"""

from ml_collections import ConfigDict

from diffdistill.configs import recipes

RECIPES = {
  "moment_matching": (
    "Salimans et al. 2024, alternating, to 8, 4, 2, 1 steps, a UViT of 397.4M"
  ),
  "parameter_moment_matching": (
    "Salimans et al. 2024, in parameter space, to 8, 4 steps, a UViT of 397.4M"
  ),
}


def get_config(recipe: str = "moment_matching") -> ConfigDict:
  """The config of one recipe; recipes/ lists the sources of the numbers."""
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
  # Split the three networks and Adam's moments over a slice's chips [ours].
  config.mesh.fsdp = -1
  config.model = {
    "network": recipes.uvit_network(128),
    # The paper interpolates between this schedule, for 32x32 images, and the
    # cosine schedule without a shift.
    "schedule": {**recipes.COSINE, "shift_from": 32},
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
  config.stages.classifier.batch_size = 1024  # a multiple of 256 chips
  recipes.moment_matching(config, recipe, learning_rate=1e-5)  # [ours]
  return config
