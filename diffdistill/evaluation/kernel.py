"""The unbiased kernel distance between two sets of feature vectors.

  (1) k(x, y) = (x . y / d + 1)^3, of vectors of d entries
  (2) MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j)
              - 2 mean_{i, j} k(x_i, y_j)

Source: Binkowski et al. 2018, Sec. 4. On Inception's features it is KID; on
other features it is not comparable to any published KID. The mean of the
distance does not depend on the number of images. For equal distributions the
distance may be a little below zero. All is computed in float64 on the host.
"""

import numpy as np
from jaxtyping import Float


def kernel_distance(
  real: Float[np.ndarray, "n d"],
  generated: Float[np.ndarray, "m d"],
  *,
  subsets: int = 100,
  subset_size: int = 1000,
  seed: int = 2020,
) -> tuple[float, float]:
  """Mean and standard deviation of (2) over random subsets of both sides.

  Subsets and defaults are the same as in torch-fidelity. The deviation is that
  of a single subset, not of the mean. The deviation means nothing if a subset
  holds all images.

  Args:
    real: features of real images.
    generated: features of generated images.
    subsets: the number of subsets; each is drawn from both sides.
    subset_size: the number of rows of each subset, without repetition.
    seed: the seed for drawing the subsets.
  """
  fewest = min(len(real), len(generated))
  if subsets < 1 or not 2 <= subset_size <= fewest:
    raise ValueError(
      f"a kernel distance of {subsets} subsets of {subset_size} needs 1 or more"
      " subsets of 2 or more, and as many images on each side; got"
      f" {len(real)} real and {len(generated)} generated"
    )
  # RandomState gives the same numbers in every version of NumPy.
  random = np.random.RandomState(seed)
  distances = []
  for _ in range(subsets):
    rows = random.choice(len(generated), subset_size, replace=False)
    others = random.choice(len(real), subset_size, replace=False)
    distances.append(_squared_mmd(generated[rows], real[others]))
  return float(np.mean(distances)), float(np.std(distances))


def _squared_mmd(
  x: Float[np.ndarray, "s d"], y: Float[np.ndarray, "s d"]
) -> float:
  """Computes (2), the unbiased estimate of the squared distance."""
  count = len(x)
  x, y = _lifted(x), _lifted(y)
  apart = sum(
    _sum_of_kernels(side, side) - ((side * side).sum(axis=1) ** 3).sum()
    for side in (x, y)
  )
  across = _sum_of_kernels(x, y)
  return apart / (count * (count - 1)) - 2 * across / count**2


def _lifted(x: Float[np.ndarray, "s d"]) -> Float[np.ndarray, "s d_plus_1"]:
  """Makes rows whose inner products are x . y / d + 1, for rows x and y."""
  rows = x.astype(np.float64) / np.sqrt(x.shape[1])
  return np.append(rows, np.ones((len(x), 1)), axis=1)


def _sum_of_kernels(
  x: Float[np.ndarray, "s d"], y: Float[np.ndarray, "s d"]
) -> float:
  """The sum of the kernel over all pairs of rows with a constant appended."""
  base = x @ y.T
  return float(np.vdot(base * base, base))
