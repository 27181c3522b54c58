"""Checks before the first update that the models of a run can be judged."""

from collections.abc import Callable, Collection

import numpy as np

from diffdistill.data.apart import num_nonempty_classes
from diffdistill.evaluation.trust import Trust
from diffdistill.interop.torch_inception import load_inception
from diffdistill.judging.held_out import check_classes
from diffdistill.networks.inception import FEATURES
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


def check_inception(run: Experiment) -> None:
  """Checks before training that FID can be measured.

  Raises:
    ValueError: if the weights are not those of the FID network, or if there are
      fewer images than features.
  """
  load_inception(run.evaluation.inception)
  counts = {"evaluation.num_images": run.evaluation.num_images}
  if not run.evaluation.reference:
    counts["the number of training images"] = len(run.source)
  for stage in run.stages:
    if stage.select:
      field = f"stages.{stage.name}.select.num_images"
      counts[field] = stage.select.num_images
  for field, count in counts.items():
    if count <= FEATURES:
      raise ValueError(
        f"{field} is {count}, but FID has {FEATURES} features and needs more"
        " images; pass 5000 or more, or leave evaluation.inception empty"
      )


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
