"""The kernel distance equals sums, closed forms and torch-fidelity."""

import itertools
import json
import pathlib
import runpy

import numpy as np
import pytest

from diffdistill.evaluation.kernel import kernel_distance

HERE = pathlib.Path(__file__).parent
MAKER = runpy.run_path(str(HERE / "make_golden_metrics.py"))
GOLDEN = json.loads(MAKER["GOLDEN"].read_text())


@pytest.mark.parametrize("name", MAKER["CASES"])
def test_the_kernel_distance_equals_that_of_torch_fidelity(name):
  distance = kernel_distance(
    *MAKER["features"](name),
    subsets=MAKER["SUBSETS"],
    subset_size=MAKER["SUBSET_SIZE"],
  )
  # The subsets are the same, but torch-fidelity multiplies in float32.
  expected = GOLDEN[name]["kid"], GOLDEN[name]["kid_std"]
  assert distance == pytest.approx(expected, rel=1e-5)


def test_distance_of_few_points_is_the_sum_over_pairs():
  random = np.random.default_rng(0)
  x, y = random.normal(size=(2, 5, 3))

  def kernel(a, b):
    return (a @ b / 3 + 1) ** 3

  within = sum(
    kernel(*pair) for side in (x, y) for pair in itertools.permutations(side, 2)
  )
  across = sum(kernel(a, b) for a in x for b in y)
  mean, deviation = kernel_distance(x, y, subset_size=5, subsets=3)
  assert mean == pytest.approx(within / 20 - 2 * across / 25, rel=1e-12)
  # Every subset holds all rows, in another order.
  assert deviation < 1e-12


def expected_kernel(mean_a, cov_a, mean_b, cov_b):
  """Mean of (x . y / d + 1)^3 for x ~ N(mean_a, cov_a), y ~ N(mean_b, cov_b).

  E (x . y)^3 is the product of both third moments, which are m_i m_j m_k + C_ij
  m_k + C_ik m_j + C_jk m_i.
  """
  dim, dot = len(mean_a), mean_a @ mean_b
  second_a = cov_a + np.outer(mean_a, mean_a)
  second_b = cov_b + np.outer(mean_b, mean_b)
  second = np.trace(second_a @ second_b)
  third = dot**3 + 3 * dot * (
    mean_b @ cov_a @ mean_b + mean_a @ cov_b @ mean_a + np.trace(cov_a @ cov_b)
  )
  third += 6 * mean_b @ cov_a @ cov_b @ mean_a
  return 1 + 3 * dot / dim + 3 * second / dim**2 + third / dim**3


def test_distance_of_gaussians_is_the_closed_form():
  random = np.random.default_rng(1)
  mixes = random.normal(size=(2, 3, 3)) / 2
  means = np.array([[0.5, -0.2, 0.1], [-0.3, 0.6, 0.4]])
  a, b = ((mean, mix.T @ mix) for mean, mix in zip(means, mixes, strict=True))
  truth = expected_kernel(*a, *a) + expected_kernel(*b, *b)
  truth -= 2 * expected_kernel(*a, *b)
  distances = [
    kernel_distance(
      *(
        mean + random.normal(size=(300, 3)) @ mix
        for mean, mix in zip(means, mixes, strict=True)
      ),
      subsets=1,
      subset_size=300,
    )[0]
    for _ in range(200)
  ]
  error = np.std(distances) / np.sqrt(len(distances))
  assert truth > 20 * error
  assert np.mean(distances) == pytest.approx(truth, abs=4 * error)


def test_equal_distributions_are_at_zero_on_average():
  random = np.random.default_rng(2)
  distances = [
    kernel_distance(*random.normal(size=(2, 40, 4)), subsets=1, subset_size=40)[
      0
    ]
    for _ in range(400)
  ]
  error = np.std(distances) / np.sqrt(len(distances))
  assert abs(np.mean(distances)) < 4 * error
  # The error is small enough to notice a biased estimate, which also counts
  # pairs of a row and itself. The mean of a biased estimate would be about 0.5:
  # 2 / 40 times (E k(x, x) - 1 - 3 / 4).
  assert error < 0.02
  assert min(distances) < 0


def test_subsets_depend_on_the_seed_alone():
  real, generated = np.random.default_rng(3).normal(size=(2, 50, 4))
  fields = {"subsets": 4, "subset_size": 20}
  first = kernel_distance(real, generated, **fields)
  assert first == kernel_distance(real, generated, **fields)
  assert first != kernel_distance(real, generated, seed=1, **fields)
  assert first[1] > 0


@pytest.mark.parametrize(
  "fields", [{"subset_size": 21}, {"subset_size": 1}, {"subsets": 0}]
)
def test_too_few_images_are_refused(fields):
  real, generated = np.zeros((30, 2)), np.zeros((20, 2))
  with pytest.raises(ValueError, match="got 30 real and 20 generated"):
    kernel_distance(real, generated, **({"subset_size": 20} | fields))
