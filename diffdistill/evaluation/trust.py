"""Decides whether a classifier is good enough to judge images by its features.

If a network has learned nothing, a distance on its features can rank the worst
model first. So a classifier is trusted only if it is clearly better than chance
on images that it was not trained on:

  (1)  lower(right, n) > c + (1 - c) / 4

`lower` is the lower end of the 99 % Wilson interval (Wilson 1927) of the
accuracy on n images. c is chance: the share of the most frequent class, which
is the accuracy of always naming that class. The bar is a quarter of the way
from chance to perfect [ours]. Every converged classifier is far above it; one
that knows only which classes are frequent is below it.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from diffdistill.evaluation.features import FeatureFn
from diffdistill.system import hosts

# 99 % of a normal distribution lie within this number of standard deviations.
DEVIATIONS = 2.5758293035489004
# The bar is this share of the way from chance to perfect accuracy.
SHARE = 0.25
# The names of the fields in evaluation.json that describe the judge.
ACCURACY, HELD_OUT, CHANCE = (
  "classifier_accuracy",
  "classifier_held_out",
  "classifier_chance",
)
TRUSTED, VERDICT = "judge_trusted", "judge"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trust:
  """The accuracy of a classifier on images that it was not trained on.

  Args:
    right: the number of images that it classifies correctly.
    count: the number of images.
    most_frequent: the number of images of their most frequent class.
    images: a text that names the images.
  """

  right: int
  count: int
  most_frequent: int
  images: str

  @property
  def accuracy(self) -> float | None:
    return self.right / self.count if self.count else None

  @property
  def chance(self) -> float | None:
    return self.most_frequent / self.count if self.count else None

  @property
  def lower(self) -> float:
    """The lower end of the interval of the accuracy; 0 without images."""
    return wilson_lower(self.right, self.count)

  @property
  def bar(self) -> float:
    """The classifier is trusted if `lower` is above this value."""
    chance = 1.0 if self.chance is None else self.chance
    return chance + (1 - chance) * SHARE

  @property
  def trusted(self) -> bool:
    return self.lower > self.bar

  @property
  def verdict(self) -> str:
    """The decision and its reason, in one line."""
    if not self.count:
      return (
        "NOT TRUSTED: the accuracy of the classifier is not known, because"
        f" there is {self.images}"
      )
    word = "trusted" if self.trusted else "NOT TRUSTED"
    needed = "and" if self.trusted else "but"
    return (
      f"{word}: the classifier is right on {_percent(self.right / self.count)}"
      f" of {self.images} (with 99 % confidence on {_percent(self.lower)} or"
      f" more), {needed} a judge needs more than {_percent(self.bar)}; the"
      " most frequent class is"
      f" {_percent(self.most_frequent / self.count)} of them"
    )

  @property
  def facts(self) -> dict[str, Any]:
    """The facts about the judge that an evaluation states."""
    return {
      ACCURACY: self.accuracy,
      HELD_OUT: self.images,
      CHANCE: self.chance,
      TRUSTED: self.trusted,
      VERDICT: self.verdict,
    }


def distrust(facts: dict[str, Any]) -> str | None:
  """Why the judge of an evaluation is not trusted; None if it is trusted."""
  if facts.get(TRUSTED, True):
    return None
  return str(facts.get(VERDICT, "NOT TRUSTED"))


def wilson_lower(right: int, count: int) -> float:
  """The lower end of the 99 % Wilson interval of right / count."""
  if not count:
    return 0.0
  share, z = right / count, DEVIATIONS
  middle = share + z**2 / (2 * count)
  half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
  return max(0.0, (middle - half) / (1 + z**2 / count))


def measure_trust(
  features: FeatureFn, batches: Iterable[dict[str, np.ndarray]], images: str
) -> Trust:
  """Measures the trust in a classifier on labelled images.

  Args:
    features: the features of the classifier.
    batches: "image" in [-1, 1] and "label"; the classifier was not trained on
      these images.
    images: a text that names the images.
  """
  right, labels = 0, []
  for rows in batches:
    odds = jax.device_get(features(rows["image"])).probabilities
    found = odds.argmax(axis=-1)
    right += int((found == rows["label"]).sum())
    labels.append(rows["label"])
  if not labels:
    return Trust(right=0, count=0, most_frequent=0, images=images)
  joined = np.concatenate(labels)
  most = int(np.unique(joined, return_counts=True)[1].max())
  # All processes use the first one's count: rounding may differ between
  # machines.
  right = hosts.on_first(lambda: right)
  return Trust(
    right=right, count=len(joined), most_frequent=most, images=images
  )


def _percent(share: float) -> str:
  return f"{100 * share:.1f} %"
