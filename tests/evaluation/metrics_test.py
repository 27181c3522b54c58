"""The metrics of images against a data set equal closed forms."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.evaluation.features import (
  Reference,
  classifier_features,
  reference_statistics,
)
from diffdistill.evaluation.kernel import kernel_distance
from diffdistill.evaluation.metrics import distance, image_metrics
from diffdistill.images import from_uint8, to_uint8


class Classification(NamedTuple):
  logits: jax.Array
  features: jax.Array


class Linear:
  def apply(self, params, x):
    features = x.reshape(x.shape[0], -1) @ params
    return Classification(logits=100 * features[:, :2], features=features)


def first_pixels(mesh_of):
  params = jnp.asarray(np.eye(4, 3), jnp.float32)
  return classifier_features(Linear(), params, mesh_of(1))


def judged(mesh, shift, count=20_000):
  """Measures images of N(shift, 0.1^2) against a data set of N(0, 0.2^2).

  Returns the metrics and the true Frechet distance.
  """
  rng = np.random.default_rng(0)
  params = rng.normal(size=(4, 3)).astype(np.float32)
  real = 0.2 * rng.normal(size=(count, 2, 2, 1)).astype(np.float32)
  fake = 0.1 * rng.normal(size=(count, 2, 2, 1)).astype(np.float32) + shift
  fake = fake.astype(np.float32)
  features = classifier_features(
    Linear(), jnp.asarray(params), mesh, batch_size=4096
  )
  reference = reference_statistics([real], features, max_features=200)
  metrics = image_metrics(
    iter(np.split(fake, [count // 3])), features, reference
  )
  # C_b = C_a / 4 commutes with C_a, so Tr (C_a C_b)^(1/2) = Tr C_a / 2.
  variance = (0.2 - 0.1) ** 2 * np.trace(params.T @ params)
  gap = shift * params.sum(axis=0)
  return metrics, gap @ gap + variance


def test_metrics_of_gaussians_through_a_linear_network_is_the_closed_form(
  mesh_of,
):
  for shift in (0.0, 0.3):
    metrics, expected = judged(mesh_of(8), shift)
    # The tolerance is wide, because the variance of 20 000 samples has an error
    # of 1 %.
    assert metrics["frechet_distance"] == pytest.approx(expected, rel=0.03)
    assert metrics["num_images"] == 20_000
    assert 1 < metrics["inception_score"] <= 2
  assert set(metrics) == {
    "frechet_distance", "inception_score", "inception_score_std",
    "precision", "recall", "num_images",
  }  # fmt: skip


def test_distance_equals_the_distance_of_all_metrics(mesh_of):
  random = np.random.default_rng(0)
  real, fake = random.uniform(-1, 1, (2, 40, 2, 2, 1)).astype(np.float32)
  features = first_pixels(mesh_of)
  reference = reference_statistics([real], features)
  alone = distance(iter(np.split(0.5 * fake, [13])), features, reference)
  judged = image_metrics(iter(np.split(0.5 * fake, [13])), features, reference)
  assert alone == judged["frechet_distance"]
  assert alone > 0.05


def test_narrow_images_have_high_precision_and_low_recall(mesh_of):
  metrics, _ = judged(mesh_of(8), 0.0, count=1000)
  assert metrics["precision"] > 0.95
  assert metrics["recall"] < metrics["precision"] - 0.25
  assert {type(value) for value in metrics.values()} == {float}


def test_the_kernel_distance_uses_the_kept_features(mesh_of):
  random = np.random.default_rng(0)
  real, fake = random.uniform(-1, 1, (2, 40, 2, 2, 1)).astype(np.float32)
  features = first_pixels(mesh_of)
  reference = reference_statistics([real], features)
  metrics = image_metrics(
    np.split(fake, [13]), features, reference, kernel=True
  )
  # The subset holds all features, so the order does not matter.
  expected = kernel_distance(
    *(
      np.asarray(features(from_uint8(to_uint8(x))).pooled) for x in (real, fake)
    ),
    subset_size=40,
  )
  found = metrics["kernel_distance"], metrics["kernel_distance_std"]
  assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
  smaller = image_metrics(
    [fake], features, reference, kernel=True, subset_size=10
  )
  assert smaller["kernel_distance_std"] > 1e-3


def test_a_reference_of_moments_alone_gives_only_the_distance(mesh_of):
  random = np.random.default_rng(0)
  real, fake = random.uniform(-1, 1, (2, 40, 2, 2, 1)).astype(np.float32)
  features = first_pixels(mesh_of)
  reference = reference_statistics([real], features)
  expected = image_metrics([fake], features, reference)
  for name in ("precision", "recall"):
    del expected[name]
  moments = Reference(moments=reference.moments, pooled=None)
  assert image_metrics([fake], features, moments, kernel=True) == expected


def test_differences_below_a_byte_and_outside_the_range_are_not_judged(mesh_of):
  features = first_pixels(mesh_of)
  levels = np.random.default_rng(0).integers(0, 2, (50, 2, 2, 1)) * 2.0 - 1
  reference = reference_statistics([levels.astype(np.float32)], features)
  for scale, same in ((1.5, True), (0.997, True), (0.99, False)):
    images = (scale * levels).astype(np.float32)
    distance = image_metrics([images], features, reference)["frechet_distance"]
    assert (distance < 1e-12) == same


def test_judging_zero_images_is_refused(mesh_of):
  features = first_pixels(mesh_of)
  reference = reference_statistics(
    [np.random.default_rng(0).uniform(-1, 1, (9, 2, 2, 1))], features
  )
  with pytest.raises(ValueError, match="cannot judge 0 images"):
    image_metrics([], features, reference)
