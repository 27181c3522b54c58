"""Prints what parts of judging cost: in an earlier version, and now.

  python -m tests.judging_speed [--features=2048] [--repeats=3]

The earlier versions are the functions `before_...` of this file. They and the
present ones take turns, and the results are compared. Each line has the median
CPU-seconds of all threads.
"""

import argparse
import statistics
import time

import jax
import numpy as np

from diffdistill.evaluation.frechet import Moments, frechet_distance
from diffdistill.images import from_uint8, rounded, to_host, to_uint8

IMAGES = (512, 64, 64, 3)


def before_distance(a, b):
  """Factors both covariances for each row, and takes singular values."""

  def factor(cov):
    values, vectors = np.linalg.eigh(cov)
    return vectors * np.sqrt(np.maximum(values, 0))[None]

  cov_a, cov_b = a.cov, b.cov
  roots = np.linalg.svd(factor(cov_a).T @ factor(cov_b), compute_uv=False)
  gap = a.mean - b.mean
  return gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * roots.sum()


def before_bytes(images):
  """Rounds on the host, in float64."""
  values = to_host(images).astype(np.float64)
  assert np.isfinite(values).all()
  return np.clip(np.rint((values + 1) * 127.5), 0, 255).astype(np.uint8)


def before_rounded(images):
  """Rounds to bytes and back on the host, and gives the device the floats."""
  return jax.block_until_ready(jax.device_put(from_uint8(before_bytes(images))))


def statistics_of(seed, dim):
  """The moments of correlated features, as many as make a full covariance."""
  random = np.random.default_rng(seed)
  scale = np.exp(-np.linspace(0, 8, dim))
  rows = random.normal(size=(2 * dim, dim)) * scale[None]
  mix = np.linalg.qr(np.random.default_rng(0).normal(size=(dim, dim)))[0]
  return Moments.empty(dim).update(rows @ mix + 0.01 * seed)


def cpu_seconds(act):
  start = time.process_time()
  result = act()
  return time.process_time() - start, result


def compare(name, before, now, repeats):
  """Runs both in turns, prints a line, and returns their last results."""
  took = {"before": [], "now": []}
  for _ in range(repeats):
    for when, act in (("before", before), ("now", now)):
      seconds, result = cpu_seconds(act)
      took[when].append((seconds, result))
  medians = {
    when: statistics.median(s for s, _ in each) for when, each in took.items()
  }
  print(
    f"{name}: {medians['before']:.3f} CPU-seconds before,"
    f" {medians['now']:.3f} now, a ratio of"
    f" {medians['now'] / medians['before']:.3f}",
    flush=True,
  )
  return took["before"][-1][1], took["now"][-1][1]


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--features", type=int, default=2048)
  parser.add_argument("--repeats", type=int, default=3)
  given = parser.parse_args()
  reference, row = (statistics_of(seed, given.features) for seed in (1, 2))
  # The reference's root is computed once for all rows, so it is timed alone.
  seconds, _ = cpu_seconds(lambda: reference.factor)
  print(f"the root of the reference, once: {seconds:.3f} CPU-seconds")
  old, new = compare(
    f"a row of {given.features} features",
    lambda: before_distance(reference, row),
    lambda: frechet_distance(reference, row),
    given.repeats,
  )
  print(f"  the distances are {old!r} and {new!r}")
  np.testing.assert_allclose(new, old, rtol=1e-9)
  images = 1.2 * jax.random.normal(jax.random.key(0), IMAGES)
  jax.block_until_ready(rounded(images).images)
  to_uint8(images)
  old, new = compare(
    f"{IMAGES} to bytes on the host",
    lambda: before_bytes(images),
    lambda: to_uint8(images),
    10 * given.repeats,
  )
  np.testing.assert_array_equal(old, new)
  old, new = compare(
    f"{IMAGES} to bytes and back on the device",
    lambda: before_rounded(images),
    lambda: jax.block_until_ready(rounded(images).images),
    10 * given.repeats,
  )
  np.testing.assert_array_equal(old, new)


if __name__ == "__main__":
  main()
