"""A classifier is trusted to judge if enough held-out images are right."""

import math

import numpy as np
import pytest

from diffdistill.evaluation.features import Features
from diffdistill.evaluation.trust import (
  DEVIATIONS,
  Trust,
  distrust,
  measure_trust,
  wilson_lower,
)


def trust(accuracy, count, chance):
  return Trust(
    right=round(accuracy * count),
    count=count,
    most_frequent=round(chance * count),
    images=f"{count} images",
  )


@pytest.mark.parametrize(("right", "count"), [(1, 7), (21, 100), (299, 300)])
def test_the_lower_end_solves_wilsons_equation(right, count):
  lower = wilson_lower(right, count)
  assert 0 < lower < right / count
  deviation = math.sqrt(lower * (1 - lower) / count)
  assert right / count - lower == pytest.approx(DEVIATIONS * deviation)


def test_the_lower_end_is_known_for_all_right_and_all_wrong():
  assert wilson_lower(12, 12) == pytest.approx(12 / (12 + DEVIATIONS**2))
  assert wilson_lower(0, 12) == pytest.approx(0, abs=1e-12)
  assert wilson_lower(0, 0) == 0


@pytest.mark.parametrize(
  ("accuracy", "count", "chance", "trusted"),
  [
    (0.987, 300, 0.1, True),
    (0.827, 10_000, 0.1, True),
    # With this accuracy, a teacher of noise looked better than a good teacher.
    (0.21, 1000, 0.2, False),
    (0.21, 1_000_000, 0.2, False),
    # A classifier that always names the most frequent class is not trusted.
    (0.9, 10_000, 0.9, False),
    (0.95, 10_000, 0.9, True),
    # Even with all answers right, five images are too few.
    (1.0, 5, 0.4, False),
    (1.0, 12, 0.34, True),
  ],
)
def test_a_judge_must_be_clearly_better_than_chance(
  accuracy, count, chance, trusted
):
  made = trust(accuracy, count, chance)
  assert made.trusted is trusted
  assert made.verdict.startswith("trusted: " if trusted else "NOT TRUSTED: ")
  assert made.facts["judge_trusted"] is trusted
  assert made.facts["classifier_accuracy"] == pytest.approx(accuracy, abs=0.01)
  assert made.facts["classifier_chance"] == pytest.approx(chance, abs=0.1)
  assert distrust(made.facts) == (None if trusted else made.verdict)


def test_a_classifier_without_test_images_is_not_trusted():
  made = measure_trust(lambda images: None, (), "no test split")
  assert not made.trusted
  assert made.facts["classifier_accuracy"] is None
  assert made.verdict == (
    "NOT TRUSTED: the accuracy of the classifier is not known, because there is"
    " no test split"
  )


def test_a_judge_that_is_no_classifier_is_trusted():
  assert distrust({"metric": "FID"}) is None


def test_right_answers_and_the_most_frequent_class_are_counted():
  def features(images):
    # The fake classifier names the class in the first pixel.
    named = images[:, 0, 0, 0].astype(int)
    return Features(images[:, 0, 0], np.eye(3, dtype=np.float32)[named])

  def batch(said, label):
    image = np.reshape(said, (-1, 1, 1, 1)).astype(np.float32)
    return {"image": image, "label": np.array(label, np.int32)}

  batches = [batch([0, 1, 2], [0, 1, 1]), batch([2, 2], [1, 2])]
  made = measure_trust(features, batches, "5 images")
  assert (made.right, made.count, made.most_frequent) == (3, 5, 3)
