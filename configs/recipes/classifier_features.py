"""Classifier-based feature distillation, Sun et al. 2023."""

from typing import Any

from diffdistill.configs.recipes.stages import add_stage


def classifier_features(
  config: Any,
  *,
  classifier: str,
  learning_rate: float = 5e-5,  # [CFD code]
  batch_size: int = 128,  # [CFD code]
  num_updates: int = 10_000,  # [CFD code]
  decay: str = "cosine",  # learning rate falls to 0 in each round [CFD code]
  temperature: float = 0.95,  # for a ResNet18 as the classifier [CFD code]
  dataset_weight: float = 0.003,  # for a ResNet18 as the classifier [CFD code]
) -> None:
  """Adds the stage "features", whose rounds match features: Sun et al. 2023.

  Unlike the paper, whose times are 1024 discrete ones, the times and the
  teacher are those of `progressive`. Unlike the released code, which feeds the
  classifier other pixel values than it was trained on, ours feeds it the same
  values; objective.classifier_input="reference_mismatch" does as the code does.

  Args:
    config: has the stage "halve".
    classifier: the stage that trains the classifier; or "imported:FILE", with
      the classifier's network in stages.features.classifier.
    learning_rate, batch_size, num_updates, decay: settings of each round.
    temperature: divides the teacher's logits; 0.9 with a DenseNet201
      [CFD code].
    dataset_weight: weight of the terms of entropy and diversity; 0 with a
      DenseNet201 [CFD code].
  """
  add_stage(
    config,
    "features",
    {
      "objective": {
        "kind": "classifier_features",
        "temperature": temperature,
        "dataset_weight": dataset_weight,
        "entropy_share": 0.75,  # [CFD code]
        "classifier_input": "as_trained",
      },
      "optimizer": {
        "learning_rate": learning_rate,
        "warmup": 0,
        "decay": decay,
        "weight_decay": 0.0,  # [CFD code]
        "clip": 1.0,  # [CFD code]
        "ema_decay": 0.0,  # [CFD code]
      },
      # The students of 2 steps and 1 step get twice as many updates [CFD code].
      "num_updates": num_updates,
      "long_rounds": 2,
      "batch_size": batch_size,
      "frozen": {"teacher": "halve/008", "classifier": classifier},
      "start_steps": 8,  # [CFD code]
      "end_steps": 1,
    },
  )
