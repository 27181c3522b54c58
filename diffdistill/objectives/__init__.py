"""The objectives, one file for each paper; the table names them all."""

from diffdistill.kinds import Kinds

OBJECTIVES = Kinds(
  __name__,
  {
    "denoising": "denoising:Denoising",
    "fine_tuning": "fine_tuning:FineTuning",
    "classification": "classification:Classification",
    "denoising_student": "denoising_student:DenoisingStudent",
    "guidance_distillation": "guidance_distillation:GuidanceDistillation",
    "progressive": "progressive:Progressive",
    "classifier_features": "classifier_features:ClassifierFeatures",
    "moment_matching": "moment_matching:MomentMatching",
    "consistency_distillation": "consistency:ConsistencyDistillation",
    "consistency_training": "consistency:ConsistencyTraining",
    "multistep_consistency": "multistep_consistency:MultistepConsistency",
    "reflow": "reflow:Reflow",
    "parameter_moment_matching": "moment_matching:ParameterMomentMatching",
    "flow_map": "flow_map:FlowMapDistillation",
    "mean_flow": "mean_flow:MeanFlow",
    "scm_distillation": "scm:ContinuousDistillation",
    "scm_training": "scm:ContinuousTraining",
    "score_identity": "score_identity:ScoreIdentity",
  },
)
