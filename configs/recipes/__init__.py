"""The papers' published settings, one file per paper.

Each function adds the stages of one paper to a config; call `teacher` first.
Every number has its source beside it:
  [PD]       Salimans & Ho 2022, arXiv 2202.00512, main text
  [PD code]  its released code, google-research/diffusion_distillation
  [DS code]  released code of Luhman & Luhman 2021, tcl9876/Denoising_Student
  [CFD code] released code of Sun et al. 2023, zju-SWJ/RCFD
  [CM code]  released code of Song et al. 2023:
             openai/consistency_models_cifar10 for CIFAR-10, and
             openai/consistency_models for ImageNet
  [ECT code] released code of Geng et al. 2024, locuslab/ect
  [EDM code] released code of Karras et al. 2022, NVlabs/edm
  [MF code]  released code of Geng et al. 2025 for CIFAR-10, with the settings
             of the paper: Gsunshine/py-meanflow, cifar10_v0.sh
  [FG]       NVlabs/FastGen, its configs
  [MM]       Salimans et al. 2024, its page on reproducibility
  [MSCM]     Heek et al. 2024, Multistep Consistency Models, appendix A.1: UViTs
             of the same group
  [SiD code] released code of Zhou et al. 2024 for CIFAR-10, mingyuanzhou/SiD
  [mem]      from memory, not looked up
  [ours]     our choice, where no source states one
"""

from diffdistill.configs.recipes.automatic import (
  auto,
  automatic_classifier,
  automatic_network,
  by_the_device,
  compared_by_the_clock,
)
from diffdistill.configs.recipes.classifier_features import classifier_features
from diffdistill.configs.recipes.compared import compared, passes_of
from diffdistill.configs.recipes.compared_jumps import compared_jumps
from diffdistill.configs.recipes.consistency import (
  consistency_distillation,
  easy_consistency,
)
from diffdistill.configs.recipes.denoising_student import denoising_student
from diffdistill.configs.recipes.edm import (
  edm_cifar10,
  edm_imagenet64,
  rectified_cifar10,
)
from diffdistill.configs.recipes.flow_maps import flow_map, mean_flow
from diffdistill.configs.recipes.guidance_distillation import (
  guidance_distillation,
)
from diffdistill.configs.recipes.half_hour import half_hour
from diffdistill.configs.recipes.moment_matching import moment_matching
from diffdistill.configs.recipes.multistep_consistency import (
  multistep_consistency,
)
from diffdistill.configs.recipes.networks import (
  ddpm_network,
  dit_network,
  film_network,
  small_network,
  uvit_network,
)
from diffdistill.configs.recipes.progressive import progressive
from diffdistill.configs.recipes.quarter_hour import quarter_hour
from diffdistill.configs.recipes.reflow import reflow
from diffdistill.configs.recipes.scm import scm
from diffdistill.configs.recipes.score_identity import score_identity_cifar10
from diffdistill.configs.recipes.stages import (
  choose,
  proportional_warmups,
  shared,
)
from diffdistill.configs.recipes.teachers import (
  COSINE,
  ddpm_teacher,
  expert,
  teacher,
)

__all__ = [
  "COSINE",
  "auto",
  "automatic_classifier",
  "automatic_network",
  "by_the_device",
  "choose",
  "classifier_features",
  "compared",
  "compared_by_the_clock",
  "compared_jumps",
  "consistency_distillation",
  "ddpm_network",
  "ddpm_teacher",
  "denoising_student",
  "dit_network",
  "easy_consistency",
  "edm_cifar10",
  "edm_imagenet64",
  "expert",
  "film_network",
  "flow_map",
  "guidance_distillation",
  "half_hour",
  "mean_flow",
  "moment_matching",
  "multistep_consistency",
  "passes_of",
  "progressive",
  "proportional_warmups",
  "quarter_hour",
  "rectified_cifar10",
  "reflow",
  "scm",
  "score_identity_cifar10",
  "shared",
  "small_network",
  "teacher",
  "uvit_network",
]
