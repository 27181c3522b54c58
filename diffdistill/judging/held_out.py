"""Measures a run's classifier on images that it was not trained on."""

from collections.abc import Callable, Collection

import numpy as np

from diffdistill.data.apart import num_nonempty_classes
from diffdistill.data.pipeline import once
from diffdistill.evaluation.features import FeatureFn
from diffdistill.evaluation.trust import Trust, measure_trust
from diffdistill.run.experiment import Experiment
from diffdistill.training.stage import Stage

# Fewer held-out images may be too few to trust any classifier.
FEW = 1000


def check_judge(
  run: Experiment, to_do: Collection[str], say: Callable[[str], None]
) -> None:
  """Checks before training that the run's classifier can judge.

  Args:
    run: the recipe.
    to_do: the names of the stages that are not finished.
    say: receives the number of images that the classifier does not train on.

  Raises:
    ValueError: if the data has fewer than two classes. If a stage selects by
      distance, also if too few images are held out to trust any classifier, or
      if the test split cannot be read.
  """
  stage = run.judging_stage
  if stage is None or not to_do:
    return
  if stage.name in to_do:
    check_classes(run, stage)
  selecting = [
    other.name
    for other in run.stages
    if other.name in to_do and other.select and other.select.by == "distance"
  ]
  if run.evaluation.inception:
    selecting = []
  trained_on, held_out = run.judged_on
  trains = stage.name in to_do and not stage.source
  if trains and trained_on is not run.source:
    say(_said(run, stage))
  if not selecting:
    return
  held_out.check()
  if len(held_out) >= FEW:
    return
  counts = np.unique(held_out.labels(), return_counts=True)[1]
  most = int(counts.max(initial=0))
  best = Trust(
    right=len(held_out),
    count=len(held_out),
    most_frequent=most,
    images="",
  )
  if not best.trusted:
    raise ValueError(
      f"stages.{selecting[0]}.select.by is 'distance', but {stage.name} can be"
      f" measured on {len(held_out)} held-out images, {most} of them of one"
      " class: too few to trust any classifier; pass more images or a test"
      f" split, stages.{selecting[0]}.select.every=0, or evaluation.inception"
    )


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


def _said(run: Experiment, stage: Stage) -> str:
  """A line that says how many images the classifier does not train on."""
  _, held_out = run.judged_on
  text = (
    f"{stage.name}: does not train on {len(held_out)} of the"
    f" {len(run.source)} training images, which measure how right it is; there"
    " is no test split"
  )
  counts = np.unique(held_out.labels(), return_counts=True)[1]
  missing = num_nonempty_classes(run.source) - len(counts)
  if missing:
    text += f"; classes of one image, which it trains on: {missing}"
  return text
