"""The papers, one file each; nothing is registered by side effect."""

from diffdistill.objectives.classification import Classification
from diffdistill.objectives.denoising import Denoising
from diffdistill.objectives.progressive import Progressive

OBJECTIVES = {
  "denoising": Denoising,
  "classification": Classification,
  "progressive": Progressive,
}
