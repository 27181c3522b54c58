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
  scm_distillation      3.66, 2.52 at 1, 2 (1: README of FastGen, whose own
                        training has 3.22; 2: from memory)
  scm_training          2.85, 2.06 at 1, 2 (1: README of FastGen, whose own
                        training has 3.23; 2: the abstract)
  flow_map              none here: the settings are [ours]
  mean_flow             2.92 at 1 (README of FastGen)
  score_identity        1.923 at 1 (the authors' README)

Deviations, besides those that recipes/ states for each paper:
  progressive, classifier_features, moment_matching, parameter_moment_matching,
  denoising_student     Unlike the papers, networks compute in bfloat16 on GPUs
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
  score_identity        Unlike the paper, the teacher is trained here, without
                        EDM's augmentation, or imported.
  reflow                Unlike the paper, the teacher's images are made by 128
                        steps of DDIM, and the network has EDM's shape. The
                        settings are from memory.
  scm_distillation, scm_training
                        Unlike the paper, whose text we could not read, the
                        settings are those of FastGen, and the network is EDM's
                        with its preconditioning. Unlike FastGen, training draws
                        no noise level above 80, which it does up to 800 from
                        data, and the norm of the tangent is not divided by the
                        root of the number of values.
  mean_flow             Unlike the paper, images are only flipped, and the
                        student's average is updated after each update, not
                        after 16. A share of pairs with s = t has the first
                        drawn time, not the later one. The teacher only judges:
                        the student begins with random weights. With
                        --config.stages.mean_flow.objective.tangent=student it
                        is iMF, of which nothing is published for CIFAR-10.

The data is a folder of PNG files, `data/cifar10/{train,test}/<class>/`, or any
other source of 32x32 images: --config.data.source.path names the folder.
`half_hour` reads a packed copy, which this command makes:

  diffdistill pack --config=cifar10:progressive \\
    --out=data/cifar10_{split}.npz
"""

from collections.abc import Callable

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
  "scm_distillation": (
    "Lu & Song 2024 (sCD), 1 and 2 steps, EDM's network of 55.7M"
  ),
  "scm_training": (
    "Lu & Song 2024 (sCT), 1 and 2 steps, EDM's network of 55.7M"
  ),
  "flow_map": "Boffi et al. 2024, 1 to 4 steps, a U-Net of 56.1M [ours]",
  "mean_flow": "Geng et al. 2025 (MeanFlow), 1 to 4 steps, a U-Net of 56.2M",
  "score_identity": "Zhou et al. 2024 (SiD), 1 step, EDM's network of 55.7M",
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
  if recipe in ("consistency_distillation", "scm_distillation"):
    recipes.edm_cifar10(config, dropout=0.13)  # [EDM code]
    if recipe == "scm_distillation":
      recipes.scm(config, recipe, num_updates=500_000, dropout=False)  # [FG]
    else:
      recipes.consistency_distillation(config)
  elif recipe in ("easy_consistency", "scm_training"):
    recipes.edm_cifar10(config, dropout=0.2)  # [ECT code], [FG]
    if recipe == "scm_training":
      recipes.scm(config, recipe, num_updates=350_000, dropout=True)  # [FG]
    else:
      recipes.easy_consistency(config)
  elif recipe in OWN_TEACHERS:
    OWN_TEACHERS[recipe](config)
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


def _reflow(config: ConfigDict) -> None:
  """Adds a teacher of rectified flow, its pairs, and a straightened student."""
  recipes.rectified_cifar10(config, dropout=0.15)  # [mem]
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


def _flow_map(config: ConfigDict) -> None:
  """Adds a teacher of rectified flow and its flow map [ours]."""
  recipes.rectified_cifar10(config, dropout=0.15, two_times=True)
  recipes.flow_map(
    config,
    learning_rate=2e-4,
    batch_size=512,
    num_updates=400_000,
    warmup=1000,
  )


def _mean_flow(config: ConfigDict) -> None:
  """Adds MeanFlow, and a teacher of rectified flow to judge it by."""
  recipes.rectified_cifar10(
    config,
    dropout=0.2,  # [MF code]
    num_waves=256,  # [MF code]
    taps=(1, 3, 3, 1),  # [MF code]
    two_times=True,
  )
  recipes.mean_flow(config)


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


# The recipes whose stages are all in one function.
OWN_TEACHERS: dict[str, Callable[[ConfigDict], None]] = {
  "denoising_student": _denoising_student,
  "classifier_features": _classifier_features,
  "reflow": _reflow,
  "flow_map": _flow_map,
  "mean_flow": _mean_flow,
  "score_identity": recipes.score_identity_cifar10,
  "half_hour": recipes.half_hour,
}
