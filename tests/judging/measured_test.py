"""At least three whole batches are timed, and the first one is not."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from diffdistill.evaluation.generator import Generator
from diffdistill.judging import measured


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slow(Generator):
  """A generator whose batches take the given seconds."""

  clock: Any
  seconds: Iterator[float]
  sizes: list[tuple[int, int]]

  def _batches(self, params, seed, num_images, num_steps, first):
    assert (params, seed) == ("weights", 7)
    for done in range(0, num_images, self.batch_size):
      # A call of one step only compiles, and takes no time of the fake clock.
      if num_steps > 1:
        self.clock.now += next(self.seconds)
      size = min(self.batch_size, num_images - done)
      self.sizes.append((num_steps, size))
      yield np.zeros((size, 1, 1, 1), np.float32)


class Clock:
  now = 50.0

  def monotonic(self):
    return self.now


@pytest.fixture
def timed(monkeypatch, mesh_of):
  """Times batches; returns columns, sizes, and how many were only timed."""

  def make(num_images, seconds):
    clock = Clock()
    monkeypatch.setattr(measured, "time", clock)
    generator = Slow(
      sample=lambda *_: None,
      image_shape=(1, 1, 1),
      mesh=mesh_of(1),
      batch_size=8,
      clock=clock,
      seconds=iter(seconds),
      sizes=[],
    )
    between = []
    stream = measured.Timed(
      generator,
      "weights",
      4,
      seed=7,
      num_images=num_images,
      keep=3,
      between=lambda: between.append(1),
    )
    seen = sum(len(images) for images in stream)
    assert seen == num_images
    assert len(stream.first) == 3
    return stream.columns, generator.sizes[1:], len(between)

  return make


@pytest.mark.parametrize(
  ("num_images", "seconds", "sizes"),
  [
    # Neither the slow first batch nor the short last batch is timed.
    (34, [9, 1, 2, 4, 0.5], [8, 8, 8, 8, 2]),
    # Two whole batches can be timed, so a third one is made.
    (24, [9, 1, 2, 4], [8, 8, 8, 8]),
    (12, [9, 0.5, 1, 2, 4], [8, 4, 8, 8, 8]),
    (5, [9, 1, 2, 4], [5, 8, 8, 8]),
  ],
)
def test_three_whole_batches_are_timed(timed, num_images, seconds, sizes):
  columns, made, between = timed(num_images, seconds)
  assert made == [(4, size) for size in sizes]
  assert columns == {
    "images_per_second": 4,
    "images_per_second_least": 2,
    "images_per_second_most": 8,
    "timed_batches": 3,
    "timed_batch_size": 8,
  }
  # `between` is called once for each batch that the judge does not see.
  assert between == sum(size == 8 for size in sizes[-(-num_images // 8) :])
