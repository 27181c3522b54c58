"""Metrics of generated images, from their features and the data's features."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from diffdistill.evaluation.features import (
  FeatureFn,
  Reference,
  RowSample,
  seen,
)
from diffdistill.evaluation.frechet import (
  Moments,
  frechet_distance,
  inception_score,
  precision_recall,
)
from diffdistill.evaluation.kernel import kernel_distance
from diffdistill.images import ImageStream, check_finite


def image_metrics(
  images: ImageStream,
  features: FeatureFn,
  reference: Reference,
  *,
  splits: int = 10,
  k: int = 3,
  kernel: bool = False,
  subset_size: int = 1000,
  ahead: Callable[[], bool] = lambda: True,
) -> dict[str, float]:
  """The metrics of generated images against a data set.

  Images are first rounded to bytes and back, as the reference images are.
  Moments are streamed in float64. Precision, recall and the kernel distance use
  as many real as generated images: the largest number that both sides kept.

  Args:
    images: generated images in [-1, 1], batch by batch.
    features: the feature network that made `reference`.
    reference: the result of `reference_statistics` or `load_reference`.
    splits: the splits of the inception score.
    k: the number of neighbours for precision and recall.
    kernel: whether to measure the kernel distance too.
    subset_size: the largest subset of the kernel distance.
    ahead: whether the next batch may be made while this one is measured; see
      `seen`.

  Returns:
    `frechet_distance` (the caller names it after the feature network: FID for
    Inception, FD-<classifier> for a classifier trained here),
    `inception_score`, `inception_score_std` and `num_images`. If the reference
    has kept features, also `precision` and `recall`; with `kernel`, also
    `kernel_distance` and `kernel_distance_std` (KID on Inception).
  """
  moments = Moments.empty(len(reference.moments.mean))
  pooled, probabilities = reference.pooled, []
  kept = None if pooled is None else RowSample(len(pooled))
  for out, bad, count in seen(images, features, ahead):
    check_finite(bad, count)
    moments = moments.update(out.pooled)
    if kept is not None:
      kept.update(out.pooled)
    probabilities.append(out.probabilities)
  if not probabilities:
    raise ValueError("cannot judge 0 images; generate some")
  score, deviation = inception_score(np.concatenate(probabilities), splits)
  result = {
    "frechet_distance": frechet_distance(reference.moments, moments),
    "inception_score": score,
    "inception_score_std": deviation,
    "num_images": float(moments.count),
  }
  if kept is None or pooled is None:
    return result
  count = min(len(kept.rows), len(pooled))
  real, generated = pooled[:count], kept.rows[:count]
  size = min(subset_size, count) if kernel else 0
  return result | _metrics_of_rows(real, generated, k, size)


def _metrics_of_rows(
  real: Float[np.ndarray, "n d"],
  generated: Float[np.ndarray, "n d"],
  k: int,
  subset_size: int,
) -> dict[str, float]:
  """Precision and recall; the kernel distance too, if there is a subset."""
  precision, recall = precision_recall(real, generated, k)
  result = {"precision": precision, "recall": recall}
  return result | (_kernel(real, generated, subset_size) if subset_size else {})


def _kernel(
  real: Float[np.ndarray, "n d"],
  generated: Float[np.ndarray, "n d"],
  subset_size: int,
) -> dict[str, float]:
  mean, deviation = kernel_distance(real, generated, subset_size=subset_size)
  return {"kernel_distance": mean, "kernel_distance_std": deviation}


def distance(
  images: ImageStream, features: FeatureFn, reference: Reference
) -> float:
  """The Frechet distance without other metrics.

  The distance is NaN if an image is not finite, because the model has diverged.
  """
  moments = Moments.empty(len(reference.moments.mean))
  for out, bad, _ in seen(images, features):
    if bad:
      return float("nan")
    moments = moments.update(out.pooled)
  return frechet_distance(reference.moments, moments)


def distance_of_halves(pooled: Float[np.ndarray, "n d"]) -> float:
  """The distance between two halves of one set of features, in shuffled order.

  The halves have the same distribution, so this distance shows how large the
  error of a distance is.
  """
  half = len(pooled) // 2
  empty = Moments.empty(pooled.shape[1])
  return frechet_distance(
    empty.update(pooled[:half]), empty.update(pooled[half : 2 * half])
  )
