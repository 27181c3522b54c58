"""Distances between two sets of feature vectors, in float64 on the host.

  (1) d^2 = |m_a - m_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2))
  (2) IS  = exp(mean_x KL(p(y | x) || p(y)))
  (3) precision = share of generated points inside some real point's ball,
      recall = share of real points inside some generated point's ball,
      a point's ball reaching to its k-th nearest neighbour in its own set

(1) Heusel et al. 2017, Eq. 6; (2) Salimans et al. 2016, Sec. 4;
(3) Kynkaanniemi et al. 2019, Eqs. 1 and 2. (1) is called FID only on the
features of the FID network, Inception. On a classifier trained here it is not
comparable to any published FID, and the caller names it `FD-<classifier>`.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float

# The number of rows of a distance matrix in memory: 1024 x 10 000 float64 is 80
# MB.
_CHUNK = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
  """Mean and covariance of the vectors of a stream that were seen so far.

  The update is pairwise (Chan, Golub & LeVeque 1983, Eq. 2.1). This update does
  not lose digits if the mean is far from zero, and does not depend on how the
  stream is cut into batches.

  Attributes:
    count: the number of vectors.
    mean: the mean vector, shape `d`, float64.
    scatter: sum over vectors of (x - mean)(x - mean)^T, `d d`, float64.
  """

  count: int
  mean: Float[np.ndarray, " d"]
  scatter: Float[np.ndarray, "d d"]

  @classmethod
  def empty(cls, dim: int) -> "Moments":
    """The moments of no vectors of `dim` entries."""
    return cls(count=0, mean=np.zeros(dim), scatter=np.zeros((dim, dim)))

  def update(self, batch: Float[np.ndarray, "b d"]) -> "Moments":
    """The moments after the rows of `batch` are added; self is unchanged."""
    if len(batch) == 0:
      return self
    rows = batch.astype(np.float64)
    mean = rows.mean(axis=0)
    centred = rows - mean[None]
    return self.merge(
      Moments(count=len(rows), mean=mean, scatter=centred.T @ centred)
    )

  def merge(self, other: "Moments") -> "Moments":
    """The moments of both streams together."""
    if self.mean.shape != other.mean.shape:
      raise ValueError(
        f"features have {len(other.mean)} entries, but had {len(self.mean)}"
        " before; use one feature network for all"
      )
    count = self.count + other.count
    if count == 0:
      return self
    step = other.mean - self.mean
    weight = self.count * other.count / count
    return Moments(
      count=count,
      mean=self.mean + step * (other.count / count),
      scatter=self.scatter + other.scatter + weight * np.outer(step, step),
    )

  @property
  def cov(self) -> Float[np.ndarray, "d d"]:
    """The unbiased covariance (divided by count - 1)."""
    if self.count < 2:
      raise ValueError(
        f"a covariance needs at least 2 vectors, got {self.count}"
      )
    return self.scatter / (self.count - 1)

  @functools.cached_property
  def factor(self) -> Float[np.ndarray, "d d"]:
    """F with F F^T = cov; it is computed once."""
    return _factor(self.cov)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian:
  """A mean and a covariance from a file.

  Attributes:
    mean: the mean vector, shape `d`, float64.
    cov: the covariance, shape `d d`, float64.
    count: the number of vectors of the estimate; None if unknown.
  """

  mean: Float[np.ndarray, " d"]
  cov: Float[np.ndarray, "d d"]
  count: int | None = None

  @functools.cached_property
  def factor(self) -> Float[np.ndarray, "d d"]:
    """F with F F^T = cov; it is computed once."""
    return _factor(self.cov)


def frechet_distance(a: Moments | Gaussian, b: Moments | Gaussian) -> float:
  """The squared Frechet distance (1) between two Gaussians; never negative.

  The symmetric eigendecomposition gives F with F F^T = C_a. Then Tr (C_a
  C_b)^(1/2) is the sum of the square roots of the eigenvalues of F^T C_b F. A
  covariance of low rank (fewer images than features) costs no accuracy, and no
  complex root appears.

  The columns of F are sorted, so the matrix F^T C_b F grows from its first to
  its last row, often by many powers of ten. LAPACK begins with the large end if
  it is told to read the upper half. Then small eigenvalues keep their digits;
  otherwise they would be lost in the rounding of the large ones.

  Args:
    a: the side whose F is computed only once: the reference of many rows.
    b: the other side.

  Raises:
    ValueError: if the numbers of features differ, if there are fewer than 2
      vectors, or if features are not finite.
  """
  if a.mean.shape != b.mean.shape:
    raise ValueError(
      f"cannot compare {len(a.mean)} features with {len(b.mean)}; use one"
      " feature network for both sides"
    )
  cov_a, cov_b = a.cov, b.cov
  if not (np.isfinite(cov_a).all() and np.isfinite(cov_b).all()):
    raise ValueError(
      "features are NaN or infinite; check the feature network's weights"
    )
  squares = np.linalg.eigvalsh(a.factor.T @ cov_b @ a.factor, UPLO="U")
  roots = np.sqrt(np.maximum(squares, 0))
  gap = a.mean - b.mean
  distance = gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * roots.sum()
  # If both sides are equal, rounding can give -1e-15.
  return max(float(distance), 0.0)


def _factor(cov: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
  """F with F F^T = cov, its columns sorted from the shortest to the longest.

  Negative eigenvalues (from rounding) count as zero.
  """
  values, vectors = np.linalg.eigh(cov)
  return vectors * np.sqrt(np.maximum(values, 0))[None]


def inception_score(
  probabilities: Float[np.ndarray, "n k"], splits: int = 10
) -> tuple[float, float]:
  """Mean and standard deviation of the inception score (2) over splits.

  The score is between 1 (all images look alike) and k (the class of each image
  is certain, and all classes are equally frequent). Splits are consecutive rows
  of nearly equal size. The score of a small split is biased low, so always
  state the number of images.
  """
  if not 1 <= splits <= len(probabilities):
    raise ValueError(
      f"an inception score of {splits} splits needs at least as many images,"
      f" got {len(probabilities)}; generate more or pass fewer splits"
    )
  scores = []
  for part in np.array_split(probabilities.astype(np.float64), splits):
    marginal = part.mean(axis=0, keepdims=True)
    # If p = 0, replace the ratio by 1, so that p log p is 0.
    ratio = np.where(part > 0, part / np.where(marginal > 0, marginal, 1), 1)
    scores.append(np.exp((part * np.log(ratio)).sum(axis=1).mean()))
  return float(np.mean(scores)), float(np.std(scores))


def precision_recall(
  real: Float[np.ndarray, "n d"],
  generated: Float[np.ndarray, "m d"],
  k: int = 3,
) -> tuple[float, float]:
  """Improved precision and recall (3), each in [0, 1].

  Precision falls if generated images leave the data. Recall falls if modes of
  the data are missing. Both depend on n and m, so compare them only at equal
  counts.

  Args:
    real: features of real images.
    generated: features of generated images.
    k: a ball reaches to the k-th nearest neighbour; 3 in the paper.
  """
  if min(len(real), len(generated)) <= k or k < 1:
    raise ValueError(
      f"precision and recall with k={k} need k >= 1 and more than k images on"
      f" each side, got {len(real)} real and {len(generated)} generated"
    )
  # Vectors that are centred lose fewer digits in `_squared_distances`.
  centre = real.mean(axis=0, dtype=np.float64)[None]
  real = real.astype(np.float64) - centre
  generated = generated.astype(np.float64) - centre
  return (
    _share_covered(generated, real, _radii(real, k)),
    _share_covered(real, generated, _radii(generated, k)),
  )


def _squared_distances(
  a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "n m"]:
  sizes = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :]
  squares = sizes - 2 * (a @ b.T)
  # Equal rows must have distance 0 despite rounding.
  return np.where(squares < 1e-12 * sizes, 0, squares)


def _radii(points: Float[np.ndarray, "n d"], k: int) -> Float[np.ndarray, " n"]:
  """The squared distance of each point to its k-th nearest other point."""
  radii = []
  for start in range(0, len(points), _CHUNK):
    squares = _squared_distances(points[start : start + _CHUNK], points)
    rows = np.arange(len(squares))
    squares[rows, start + rows] = np.inf
    radii.append(np.partition(squares, k - 1, axis=1)[:, k - 1])
  return np.concatenate(radii)


def _share_covered(
  points: Float[np.ndarray, "n d"],
  centres: Float[np.ndarray, "m d"],
  radii: Float[np.ndarray, " m"],
) -> float:
  """The share of points that lie in the ball of at least one centre."""
  covered = 0
  for start in range(0, len(points), _CHUNK):
    squares = _squared_distances(points[start : start + _CHUNK], centres)
    covered += int((squares <= radii[None]).any(axis=1).sum())
  return covered / len(points)
