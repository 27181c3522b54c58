"""CIFAR-10, 32x32, unconditional, as three of the papers distilled it.

The recipe `half_hour` trains students of four papers from one teacher in thirty
minutes on one accelerator. Its settings are [ours]: see recipes/half_hour.py.

  diffdistill train --workdir=runs/cifar10 \\
    --config=cifar10:progressive

Published FID at each number of steps, and the hardware of the paper. We have
measured none of them:
  progressive           9.12, 4.51, 3.00, 2.57 at 1, 2, 4, 8 (its Table 2);
                        8 TPUv4 chips
  classifier_features   none: we could not read its tables; 4 GPUs
  denoising_student     9.36 at 1 (Table 2 of Salimans & Ho 2022); a TPUv2-8
  moment_matching, parameter_moment_matching
                        none: the paper has no CIFAR-10. Network, batch size
                        and learning rate are [ours]; for the rest see recipes/
  consistency_distillation
                        3.55, 2.93 at 1, 2 (the README of Geng et al. 2024)
  easy_consistency      3.60, 2.11 at 1, 2 (the authors' README), after 400,000
                        updates, where the recipe has the 200,000 of their
                        script
  reflow                none here: the paper's are of an adaptive solver

Deviations, besides those that recipes/ states for each paper:
  all but the two of consistency
                        Unlike the papers, networks compute in bfloat16 on GPUs
                        and TPUs, with float32 weights, norms and outputs; for
                        the papers' type: --config.model.network.dtype=float32.
  classifier_features   Unlike the paper, the schedule is cosine in angle with
                        logSNR in [-20, 20], not 1024 betas, so that time 0 is
                        clean; the classifier has ResNet18's shape but
                        GroupNorm, and AdamW and flips in place of 300 epochs
                        of SGD, AutoAugment and Cutout.
  denoising_student     Unlike the paper, the teacher is trained here.
  moment_matching, parameter_moment_matching
                        Unlike the paper, the network is the U-Net of
                        `progressive`, not a UViT, and the data not ImageNet.
  consistency_distillation
                        Unlike the paper, the network is DDPM++ and not NCSN++,
                        and the teacher is trained here, without EDM's
                        augmentation, or imported.
  easy_consistency      Unlike the paper, the teacher is trained here, without
                        EDM's augmentation, or imported.
  reflow                Unlike the paper, the teacher's images are made by 128
                        steps of DDIM, and the network has EDM's shape. The
                        settings are from memory.

The data is a folder of PNG files, `data/cifar10/{train,test}/<class>/`, or any
other source of 32x32 images: --config.data.source.path names the folder.
`half_hour` reads a packed copy, which this command makes:

  diffdistill pack --config=cifar10:progressive \\
    --out=data/cifar10_{split}.npz
"""

from ml_collections import ConfigDict

from diffdistill.configs import recipes

RECIPES = {
  "progressive": "Salimans & Ho 2022, 8192 -> 1 steps, their U-Net of 60.0M",
  "classifier_features": (
    "Sun et al. 2023, 1024 -> 1 steps, their U-Net of 35.7M"
  ),
  "denoising_student": "Luhman & Luhman 2021, 1 step, their U-Net of 35.7M",
  "moment_matching": (
    "Salimans et al. 2024, alternating, to 8, 4, 2 and 1 steps [ours]"
  ),
  "parameter_moment_matching": (
    "Salimans et al. 2024, in parameter space, to 8 and 4 steps [ours]"
  ),
  "consistency_distillation": (
    "Song et al. 2023, 1 and 2 steps, EDM's network of 55.7M"
  ),
  "easy_consistency": (
    "Geng et al. 2024 (ECT), 1 and 2 steps, EDM's network of 55.7M"
  ),
  "reflow": "Liu et al. 2022, 1 to 8 steps, EDM's network of 55.7M",
  "half_hour": "four papers from one teacher in 30 minutes on one GPU [ours]",
}


def get_config(recipe: str = "progressive") -> ConfigDict:
  """The config of one recipe; recipes/ lists the sources of the numbers."""
  recipes.choose(recipe, RECIPES)
  config = ConfigDict(recipes.shared())
  config.data = {
    "source": {
      "kind": "folder",
      "path": "data/cifar10",
      "split": "train",
      "image_size": 32,
      "classes": 10,
    },
    "flip": True,  # [PD], section 5.1; [CFD code]
    "conditional": False,  # [PD code], [CFD code], [DS code]
  }
  config.classifier = {  # a classifier with the shape of ResNet18
    "kind": "resnet",
    "channels": 64,
    "multipliers": (1, 2, 4, 8),
    "num_blocks": 2,
    "dropout": 0.1,
  }
  if recipe == "denoising_student":
    _denoising_student(config)
  elif recipe == "classifier_features":
    _classifier_features(config)
  elif recipe in ("consistency_distillation", "easy_consistency"):
    # The rates of EDM's teacher [EDM code] and of [ECT code].
    distilled = recipe == "consistency_distillation"
    _edm_teacher(config, dropout=0.13 if distilled else 0.2)
    getattr(recipes, recipe)(config)
  elif recipe == "reflow":
    _reflow(config)
  elif recipe == "half_hour":
    recipes.half_hour(config)
  else:
    _google_teacher(config)
    if recipe == "progressive":
      recipes.progressive(
        config,
        learning_rate=5e-5,  # [PD code]
        batch_size=128,  # [PD code]
        start_steps=8192,  # [PD], section 5.2
      )
    else:
      recipes.moment_matching(  # [ours]
        config, recipe, learning_rate=1e-5, batch_size=512
      )
  return config


def _google_teacher(config: ConfigDict) -> None:
  """Adds the teacher of Salimans & Ho 2022 and its U-Net."""
  config.model = {
    "network": {  # [PD code]
      "kind": "unet",
      "style": "film",
      "channels": 256,
      "multipliers": (1, 1, 1),
      "num_blocks": 3,
      "attention": (8, 16),
      "num_heads": 1,
      "embed_dim": 1024,
      # Only the teacher is trained with dropout, at this rate.
      "dropout": 0.2,
      "remat": "none",
      "dtype": recipes.auto(),  # [ours]; [PD code] has float32
    },
    "schedule": recipes.COSINE,  # [PD code]
    "output": "x0",  # [PD code]
    "label_dropout": 0.0,
  }
  recipes.teacher(
    config,
    num_updates=800_000,  # [ours]
    learning_rate=2e-4,  # [PD code]
    batch_size=128,  # [PD code]
    weight_decay=1e-3,  # [PD code]
  )


def _edm_teacher(config: ConfigDict, dropout: float) -> None:
  """Adds the teacher of Karras et al. 2022 for CIFAR-10, with a boundary."""
  config.model = {
    "network": {
      "kind": "song_unet",
      "channels": 128,  # [EDM code]
      "multipliers": (2, 2, 2),  # [EDM code]
      "num_blocks": 4,  # [EDM code]
      "attention": (16,),  # [EDM code]
      "embed_dim": 512,  # [EDM code]
      "dropout": dropout,
      "remat": "none",
      # Consistency compares outputs at neighbouring times, which bfloat16 would
      # round to the same number.
      "dtype": "float32",
    },
    "schedule": recipes.CONSISTENCY_SCHEDULE,
    "output": "x0",  # [EDM code]
    "precondition": recipes.CONSISTENCY_PRECONDITION,
    "label_dropout": 0.0,
  }
  recipes.teacher(
    config,
    num_updates=390_625,  # 200 million images [EDM code]
    learning_rate=1e-3,  # [EDM code]
    batch_size=512,  # [EDM code]
    weight_decay=0.0,  # [EDM code]
    weighting="edm",  # [EDM code]
    warmup=19_531,  # 10 million images [EDM code]
  )
  teacher = config.stages.teacher
  teacher.objective.draw = {"kind": "lognormal", "mean": -1.2, "std": 1.2}
  config.sampler = {
    "kind": "heun",
    "grid": "karras",
    "churn": 0.0,
    "clip": False,
  }
  config.evaluation.num_steps = (1, 2, 4, 8, 18)


def _reflow(config: ConfigDict) -> None:
  """Adds a teacher of rectified flow, its pairs, and a straightened student."""
  _edm_teacher(config, dropout=0.15)  # [mem]
  config.model.schedule = {"kind": "rectified_flow"}
  config.model.output = "velocity"
  config.model.precondition = {"kind": "identity", "noise": "time"}
  teacher = config.stages.teacher
  teacher.objective.weighting = "snr_plus_one"  # [ours]
  teacher.objective.draw = {"kind": "uniform"}
  config.sampler = {"kind": "ddim", "grid": "uniform", "clip": False}
  config.evaluation.num_steps = (1, 2, 4, 8, 128)
  recipes.reflow(
    config,
    pairs={
      "num_steps": 128,  # [ours]
      "num_pairs": 1_024_000,  # [ours]
      "held_out": 51_200,  # [ours]
      "shard_size": 102_400,  # [ours]
      "batch_size": 2048,  # [ours]
    },
  )


def _classifier_features(config: ConfigDict) -> None:
  """Adds halving rounds from 1024 to 8 steps, then three rounds on features."""
  config.model = {
    # Only the teacher is trained with this dropout [CFD code].
    "network": recipes.ddpm_network(
      (1, 2, 2, 2), dropout=0.1, dtype=recipes.auto()
    ),
    "schedule": recipes.COSINE,
    "output": "x0",  # [CFD code]
    "label_dropout": 0.0,
  }
  recipes.teacher(
    config,
    num_updates=800_000,  # [CFD code]
    learning_rate=2e-4,  # [CFD code]
    batch_size=128,  # [CFD code]
    weight_decay=0.0,  # [CFD code]
    discrete_steps=1024,  # [CFD code]
    warmup=5000,  # [CFD code]
  )
  recipes.progressive(
    config,
    learning_rate=5e-5,  # [CFD code]
    batch_size=128,  # [CFD code]
    start_steps=1024,  # [CFD code]
    end_steps=8,  # [CFD code]
    num_updates=10_000,  # [CFD code]
    decay="cosine",  # [CFD code]
  )
  recipes.expert(config)
  recipes.classifier_features(config, classifier="expert")


def _denoising_student(config: ConfigDict) -> None:
  """Adds a one-step student of 100 DDIM steps, whose times are quadratic."""
  recipes.ddpm_teacher(
    config,
    multipliers=(1, 2, 2, 2),  # [DS code]
    grid="quadratic_indices",  # [DS code]
    first_time=0.801,  # DDPM's time step 800, from 0 to 999 [DS code]
    num_updates=800_000,  # [ours]
    learning_rate=2e-4,  # [ours]
    batch_size=128,  # [ours]
    dropout=0.1,  # [ours]
    judged=True,
    dtype=recipes.auto(),
  )
  config.evaluation.num_steps = (1, 2, 4, 8, 16, 32, 64, 100)
  recipes.denoising_student(
    config,
    pairs={
      "num_steps": 100,  # [DS code]
      "num_pairs": 1_024_000,  # [DS code]
      "held_out": 51_200,  # [DS code]
      "shard_size": 102_400,  # [DS code]
      "batch_size": 2048,  # [ours]
    },
    optimizer={
      "learning_rate": 2e-4,  # [DS code]
      "warmup": 5000,  # [DS code]
      "b1": 0.9,  # [DS code]
      "b2": 0.98,  # [DS code]
      "ema_decay": 0.995,  # [DS code]
    },
    num_updates=50_000,  # 25 epochs [DS code]
    batch_size=512,  # [DS code]
    norm="l1",  # [DS code]
    select_every=2000,  # the updates of an epoch [DS code]
  )
