"""Measures one row of a comparison: times a model and judges its images."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from diffdistill.arrays import Params
from diffdistill.evaluation.generator import Generator
from diffdistill.evaluation.metrics import image_metrics
from diffdistill.evaluation.speeds import BATCH, FEWEST, SPEED, TIMED, speeds
from diffdistill.evaluation.teacher_gap import teacher_gap
from diffdistill.images import AnyImages, to_host
from diffdistill.judging.judge import Judge

# After so many timed batches, a batch is made while the last one is measured.
MOST_TIMED = 12


class Timed:
  """The images of one row, batch by batch, with the time of some batches.

  Neither the first batch nor a last batch that is smaller is timed. If this
  leaves fewer than three timed batches, more batches are made, only to be
  timed. While `timing()` is true, ask for a batch only after all work on the
  last batch has ended, because it would slow the timed batch down.

  Args:
    generator, params, num_steps: the model and its number of steps.
    seed: the seed of the noise.
    num_images: the number of images.
    keep: the number of images to keep, from the first on.
    between: called after each batch that is only timed; it may raise to stop.
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
    # This compiles the sampler before the clock starts.
    jax.block_until_ready(next(generator.batches(params, seed, 1, 1)))

  def timing(self) -> bool:
    """Whether the next batch is timed."""
    return len(self._seconds) < MOST_TIMED

  def __iter__(self) -> Iterator[AnyImages]:
    for images in self._timed(self._batches):
      if sum(map(len, self._first)) < self._keep:
        self._first.append(to_host(images))
      yield images
    missing = FEWEST - len(self._seconds)
    if missing > 0:
      size = missing * self._generator.batch_size
      for _ in self._timed(self._more(num_images=size)):
        self._between()

  def _timed(self, batches: Iterator[Any]) -> Iterator[AnyImages]:
    """Yields the batches, and times whole ones with their copy to the host."""
    start = time.monotonic()
    for batch in batches:
      if self.timing():
        to_host(batch)
        seconds = time.monotonic() - start
        if self._warm and len(batch) == self._generator.batch_size:
          self._seconds.append(seconds)
        self._warm = True
      yield batch
      start = time.monotonic()

  @property
  def columns(self) -> dict[str, Any]:
    """The columns of the speed; available after all images were yielded."""
    size, count = self._generator.batch_size, len(self._seconds)
    return {**speeds(SPEED, size, self._seconds), TIMED: count, BATCH: size}

  @property
  def first(self) -> np.ndarray:
    """The first images, at most `keep` of them."""
    return np.concatenate(self._first)[: self._keep]


def measured(
  stream: Timed,
  judge: Judge,
  target: np.ndarray | None,
) -> dict[str, Any]:
  """The columns of a row that depend on its images alone.

  Args:
    stream: the images.
    judge: measures the images.
    target: float32 images `n h w c` of the same noise, for the teacher gap;
      None to compare the stream with itself.
  """
  kernel = judge.kernel
  judged = image_metrics(
    stream,
    judge.features,
    judge.reference,
    kernel=bool(kernel),
    ahead=lambda: not stream.timing(),
  )
  target = stream.first if target is None else target
  return {
    judge.metric: judged["frechet_distance"],
    "inception_score": judged["inception_score"],
    "precision": judged.get("precision"),
    "recall": judged.get("recall"),
    **({kernel: judged.get("kernel_distance")} if kernel else {}),
    "teacher_gap": teacher_gap([stream.first], [target]).relative,
    **stream.columns,
  }
