"""Measures a run's classifier on images that it was not trained on."""

from diffdistill.data.apart import num_nonempty_classes
from diffdistill.data.pipeline import once
from diffdistill.evaluation.features import FeatureFn
from diffdistill.evaluation.trust import Trust, measure_trust
from diffdistill.run.experiment import Experiment
from diffdistill.training.stage import Stage


def check_classes(run: Experiment, stage: Stage) -> None:
  """Refuses to train a classifier on fewer than two classes.

  Raises:
    ValueError: if the data has fewer than two classes with images.
  """
  count = num_nonempty_classes(run.source)
  if count < 2:
    raise ValueError(
      f"stages.{stage.name} makes a classifier, but the data has {count} class"
      " with images, from which it learns nothing; pass data of two classes or"
      f" more, or leave {stage.name} out of config.run and judge by"
      " evaluation.inception"
    )


def measure(run: Experiment, stage: Stage, features: FeatureFn) -> Trust:
  """Measures the accuracy of a classifier on images it was not trained on.

  Args:
    run: the recipe.
    stage: the stage that made the classifier.
    features: the classifier, with its weights.
  """
  trained_on, held_out = run.judged_on
  if trained_on is not run.source:
    seen = f"that {stage.name} does not train on"
    if stage.source:
      seen = f"that {stage.source} may have been trained on"
    images = f"{len(held_out)} training images {seen}"
    if not len(held_out):
      nothing = "no test split, and no class has two images"
      return measure_trust(features, (), nothing)
  else:
    try:
      held_out.check()
    except (ValueError, FileNotFoundError) as error:
      nothing = f"no test split that can be read ({error})"
      return measure_trust(features, (), nothing)
    images = f"{len(held_out)} images of the test split"
  batches = once(held_out, run.evaluation.batch_size)
  return measure_trust(features, batches, images)
