"""ImageNet at 64x64, class-conditional: Salimans & Ho 2022 and moment matching.

  diffdistill train --workdir=runs/imagenet64 \\
    --config=imagenet64:progressive

Published FID at each number of steps, and the hardware of the paper. We have
measured none of them:
  progressive       16.1, 7.36, 3.88, 2.95 at 1, 2, 4, 8, read off the paper's
                    figure 4 (about 1 % error); 64 TPUv4 chips
  moment_matching   3.00, 3.86 at 1, 2 (a table of Lu & Song 2024) and 1.24 at 8
                    (a benchmark aggregator's page); 256 TPUv5e chips
  parameter_moment_matching
                    none found; 256 TPUv5e chips
  consistency_distillation
                    none here: the recipe has the squared error, whose numbers
                    we could not read
  scm_distillation  1.48 at 2 (the abstract), by a larger network
  multistep_consistency
                    1.4 at 8 (the abstract of the paper)
  guidance_distillation
                    none found; with 4 steps it is comparable to its teacher
                    (the abstract of the paper)

Deviations, besides those that recipes/ states for each paper:
  progressive       none.
  moment_matching, parameter_moment_matching
                    Unlike the paper, the schedule is the plain cosine, not one
                    interpolated from noise for 32x32. The UViT has the stages
                    and the number of parameters of Heek et al. 2024;
                    networks/uvit.py has what they do not say. Our own choices
                    are the output v, the label dropout and the training of the
                    teacher. The teacher is not guided;
                    --config.guidance.weight=0.1 guides it. On NVIDIA GPUs
                    moment_matching also takes
                    --config.model.network.attention=cudnn.
  consistency_distillation
                    Unlike the paper, the U-Net is that of `progressive`, of
                    nearly the same size as the paper's.
  scm_distillation  Unlike the paper, whose network is EDM2 and whose text we
                    could not read, network and settings are those of FastGen.
                    Unlike FastGen, the rate stays constant: there it falls with
                    the inverse root of the updates after 35,000. The norm of
                    the tangent is not divided by the root of the number of
                    values. The U-Net is that of `progressive`.
  multistep_consistency
                    Unlike the paper, the schedule is the plain cosine and the
                    teacher's steps are DDIM. Its settings are from memory.
  guidance_distillation
                    The settings are those of `progressive`, since we could not
                    read the paper's own: its range of weights and the output
                    are from memory, and the updates of the first stage and the
                    label dropout are our own choices. Unlike the paper, the
                    sampler is only the deterministic one.

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
    "Salimans et al. 2024, in parameter space, to 8, 4 steps, a UViT of 394.2M"
  ),
  "consistency_distillation": (
    "Song et al. 2023, 1 and 2 steps, a U-Net of 295.9M"
  ),
  "scm_distillation": (
    "Lu & Song 2024 (sCD), 1 and 2 steps, a U-Net of 295.9M"
  ),
  "multistep_consistency": (
    "Heek et al. 2024, to 8, 4, 2, 1 steps, a UViT of 394.2M"
  ),
  "guidance_distillation": (
    "Meng et al. 2023, told its guidance, 1024 -> 1 steps, a U-Net of 296.6M"
  ),
}


def get_config(recipe: str = "progressive") -> ConfigDict:
  """The config of one recipe; recipes/ lists the sources of the numbers."""
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
    "network": recipes.film_network(192, (1, 2, 3, 4)),  # [PD code]
    "schedule": recipes.COSINE,  # [PD code]
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
  if recipe in OF_EDM:
    OF_EDM[recipe](config)
    return config
  recipes.teacher(
    config,
    num_updates=550_000,  # [ours]
    learning_rate=3e-4,  # [PD code]
    batch_size=2048,  # [PD code]
    weight_decay=0.0,  # [PD code]
  )
  config.stages.classifier.batch_size = 1024  # a multiple of 256 chips
  if recipe == "guidance_distillation":
    config.model.network.told_guidance = True
    config.model.output = "v"  # [mem]
    config.model.label_dropout = 0.1  # [ours]
    recipes.guidance_distillation(config)
    return config
  if recipe == "progressive":
    recipes.progressive(
      config,
      learning_rate=1e-4,  # [PD code]
      batch_size=2048,  # [PD code]
      start_steps=1024,  # [PD], section 5.2
    )
    return config
  # Split the three networks and Adam's moments over a slice's chips [ours].
  config.mesh.fsdp = -1
  config.model.network = recipes.uvit_network(64)
  config.model.output = "v"  # [ours]
  config.model.label_dropout = 0.1  # [ours]
  if recipe == "multistep_consistency":
    recipes.multistep_consistency(config, learning_rate=1e-4)  # [ours]
  else:
    recipes.moment_matching(config, recipe, learning_rate=1e-5)  # [ours]
  return config


def _consistency_distillation(config: ConfigDict) -> None:
  """Adds EDM's teacher and its consistency model, with the squared error."""
  # Consistency compares outputs at neighbouring times, which bfloat16 would
  # round to the same number; [CM code] has float16, which is finer.
  recipes.edm_imagenet64(
    config,
    dtype="float32",
    noise_factor=250.0,  # [CM code]
  )
  recipes.consistency_distillation(
    config,
    learning_rate=8e-6,  # [CM code]
    batch_size=2048,  # [CM code]
    num_updates=600_000,  # [CM code]
    warmup=0,  # [CM code]
    ema_decay=0.999943,  # [CM code]
    steps=39,  # between 40 noise levels [CM code]
    huber=100.0,  # [CM code]: this is the squared error up to a factor
    target_decay=0.95,  # [CM code]
    levels=(1.383,),  # the 23rd of the 40 noise levels [CM code]
  )


def _scm_distillation(config: ConfigDict) -> None:
  """Adds EDM's teacher and its consistency model in continuous time."""
  recipes.edm_imagenet64(config, dtype="bfloat16")  # [FG]
  recipes.scm(
    config,
    "scm_distillation",
    num_updates=600_000,  # [FG]
    dropout=False,  # [FG]
    batch_size=1024,  # [FG]
    std=1.6,  # [FG]
    levels=(1.1,),  # [FG]
    optimizer={
      "kind": "adam",  # [FG]
      "learning_rate": 7e-5,  # [FG]
      "eps": 1e-11,  # [FG]
      "clip": 10.0,  # [FG]
    },
  )


# The recipes whose teacher is EDM's.
OF_EDM = {
  "consistency_distillation": _consistency_distillation,
  "scm_distillation": _scm_distillation,
}
