"""The papers, one file each; nothing is registered by side effect."""

from diffdistill.objectives.classification import Classification
from diffdistill.objectives.classifier_features import ClassifierFeatures
from diffdistill.objectives.denoising import Denoising
from diffdistill.objectives.denoising_student import DenoisingStudent
from diffdistill.objectives.fine_tuning import FineTuning
from diffdistill.objectives.moment_matching import (
  MomentMatching,
  ParameterMomentMatching,
)
from diffdistill.objectives.progressive import Progressive

OBJECTIVES = {
  "denoising": Denoising,
  "fine_tuning": FineTuning,
  "classification": Classification,
  "denoising_student": DenoisingStudent,
  "progressive": Progressive,
  "classifier_features": ClassifierFeatures,
  "moment_matching": MomentMatching,
  "parameter_moment_matching": ParameterMomentMatching,
}
