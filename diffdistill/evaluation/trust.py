"""Whether a classifier is good enough to judge images by its features.

A distance on the features of a network that has learned nothing can put the
worst model first. So a classifier is trusted only if it is clearly better than
chance on images that it was not trained on:

  (1)  lower(right, n) > c + (1 - c) / 4

lower is the lower end of the 99 % Wilson interval of an accuracy that is
measured on n images (Wilson 1927), and c is chance: the share of the most
frequent class, which is the accuracy of naming that class always. The bar is a
quarter of the way from chance to perfect [ours]: far below any classifier that
has converged, and above one that knows only which classes are frequent.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from diffdistill.evaluation.features import FeatureFn
from diffdistill.system import hosts

# Of a normal distribution, 99 % lies within so many standard deviations.
DEVIATIONS = 2.5758293035489004
# The share of the way from chance to perfect.
SHARE = 0.25
# The fields of an evaluation that are about its judge.
ACCURACY, HELD_OUT, CHANCE = (
  "classifier_accuracy",
  "classifier_held_out",
  "classifier_chance",
)
TRUSTED, VERDICT = "judge_trusted", "judge"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trust:
  """How right a classifier is on images that it was not trained on.

  Args:
    right: the number of images that it classifies correctly.
    count: the number of images.
    most_frequent: the number of images of their most frequent class.
    images: what they are, in words.
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
    """What `lower` must be above."""
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
    """What an evaluation says of its judge."""
    return {
      ACCURACY: self.accuracy,
      HELD_OUT: self.images,
      CHANCE: self.chance,
      TRUSTED: self.trusted,
      VERDICT: self.verdict,
    }


def distrust(facts: dict[str, Any]) -> str | None:
  """Why the judge of an evaluation is not trusted; None if it is."""
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
  """The trust in a classifier, from labelled images.

  Args:
    features: of the classifier.
    batches: "image" in [-1, 1] and "label"; none of them was trained on.
    images: what they are, in words.
  """
  right, labels = 0, []
  for rows in batches:
    found = features(rows["image"]).probabilities.argmax(axis=-1)
    right += int((found == rows["label"]).sum())
    labels.append(rows["label"])
  if not labels:
    return Trust(right=0, count=0, most_frequent=0, images=images)
  joined = np.concatenate(labels)
  most = int(np.unique(joined, return_counts=True)[1].max())
  # One process's word: a last digit may differ between machines.
  right = hosts.on_first(lambda: right)
  return Trust(
    right=right, count=len(joined), most_frequent=most, images=images
  )


def _percent(share: float) -> str:
  return f"{100 * share:.1f} %"
