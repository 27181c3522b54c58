"""One row of a comparison: the images of a model, timed and measured."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from diffdistill.arrays import Params
from diffdistill.evaluation.features import FeatureFn, Reference
from diffdistill.evaluation.generator import Generator
from diffdistill.evaluation.metrics import image_metrics
from diffdistill.evaluation.speeds import BATCH, FEWEST, SPEED, TIMED, speeds
from diffdistill.evaluation.teacher_gap import teacher_gap
from diffdistill.images import to_host


class Timed:
  """The images of one row, timed, of which only the first are kept.

  Only whole batches count, all of one size: not the first of them, nor a last
  one that is cut. Where fewer than three are left, a few more are made.

  Args:
    generator, params, num_steps: the model.
    seed: of the noise.
    num_images: how many.
    keep: how many of them to keep.
    between: called between batches, beside the clock; may raise, to leave.
  """

  def __init__(
    self,
    generator: Generator,
    params: Params,
    num_steps: int,
    *,
    seed: int,
    num_images: int,
    keep: int,
    between: Callable[[], None],
  ):
    self._seconds: list[float] = []
    self._warm = False
    self._generator = generator
    self._more = functools.partial(
      generator.batches, params, seed, num_steps=num_steps
    )
    self._first: list[np.ndarray] = []
    self._keep = keep
    self._between = between
    self._batches = generator.batches(params, seed, num_images, num_steps)
    # Compiled before the clock starts; the images are thrown away.
    jax.block_until_ready(next(generator.batches(params, seed, 1, 1)))

  def __iter__(self) -> Iterator[np.ndarray]:
    for images in self._timed(self._batches):
      if sum(map(len, self._first)) < self._keep:
        self._first.append(images)
      yield images
      self._between()
    missing = FEWEST - len(self._seconds)
    if missing > 0:
      size = missing * self._generator.batch_size
      for _ in self._timed(self._more(num_images=size)):
        self._between()

  def _timed(self, batches: Iterator[Any]) -> Iterator[np.ndarray]:
    """The batches on the host; the seconds of each whole one are noted."""
    start = time.monotonic()
    for batch in batches:
      images = to_host(batch)
      seconds = time.monotonic() - start
      if self._warm and len(images) == self._generator.batch_size:
        self._seconds.append(seconds)
      self._warm = True
      yield images
      start = time.monotonic()

  @property
  def columns(self) -> dict[str, Any]:
    """The speed and how it was measured; once all images were seen."""
    size, count = self._generator.batch_size, len(self._seconds)
    return {**speeds(SPEED, size, self._seconds), TIMED: count, BATCH: size}

  @property
  def first(self) -> np.ndarray:
    """The first images, at most as many as are kept."""
    return np.concatenate(self._first)[: self._keep]


def measured(
  stream: Timed,
  features: FeatureFn,
  reference: Reference,
  metric: str,
  kernel: str,
  target: np.ndarray | None,
) -> dict[str, Any]:
  """The columns of a row that are of its images alone.

  Args:
    stream: the images.
    features, reference, metric, kernel: see `compare`.
    target: images of the same noise, for the gap; None for the stream's own.
  """
  judged = image_metrics(stream, features, reference, kernel=bool(kernel))
  target = stream.first if target is None else target
  return {
    metric: judged["frechet_distance"],
    "inception_score": judged["inception_score"],
    "precision": judged.get("precision"),
    "recall": judged.get("recall"),
    **({kernel: judged.get("kernel_distance")} if kernel else {}),
    "teacher_gap": teacher_gap([stream.first], [target]).relative,
    **stream.columns,
  }
