"""What a metric looks at: features of images, and of the data set once.

Feature networks run in float32 at the highest matmul precision: the default
on accelerators (bfloat16 or TF32 products) shifts a Frechet distance.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from diffdistill.arrays import Image, Params
from diffdistill.evaluation.frechet import Gaussian, Moments
from diffdistill.images import ImageStream, from_uint8, to_uint8
from diffdistill.system import hosts


class Features(NamedTuple):
  """What a feature network says of a batch, on the host, float32.

  Attributes:
    pooled: features before the last layer, shape `b d`.
    probabilities: of the classes, shape `b k`, rows sum to 1.
  """

  pooled: np.ndarray
  probabilities: np.ndarray


# Images of shape `b h w c` in [-1, 1] on the host -> Features of each.
FeatureFn = Callable[[np.ndarray], Features]


@runtime_checkable
class Classifier(Protocol):
  """A network whose `apply` returns an object with `logits` and `features`."""

  def apply(self, params: Params, x: Image) -> Any: ...


def classifier_features(
  classifier: Classifier, params: Params, mesh: Mesh, *, batch_size: int = 256
) -> FeatureFn:
  """The feature function of a classifier, compiled once for one shape.

  Args:
    classifier: its module must compute in float32.
    params: its weights, in any sharding over `mesh` (weights on one device
      are copied to the others at every batch).
    mesh: images are split over all of its axes.
    batch_size: images per call of the network, rounded up to a multiple of
      the number of devices. Longer inputs are cut and shorter ones padded, so
      give the size that batches usually have.
  """
  batch_size = round_up(batch_size, mesh)
  by_row = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
  replicated = NamedSharding(mesh, PartitionSpec())

  def apply(params, images):
    with jax.default_matmul_precision("highest"):
      out = classifier.apply(params, images)
      return (
        out.features.astype(jnp.float32),
        jax.nn.softmax(out.logits.astype(jnp.float32)),
      )

  # Replicated outputs can be read by every process.
  compiled = jax.jit(apply, out_shardings=replicated)

  def features(images: np.ndarray) -> Features:
    if len(images) == 0:
      raise ValueError("cannot take the features of 0 images")
    pooled, probabilities = [], []
    for start in range(0, len(images), batch_size):
      chunk = images[start : start + batch_size]
      missing = batch_size - len(chunk)
      padded = np.pad(chunk, ((0, missing), (0, 0), (0, 0), (0, 0)))
      out = compiled(params, hosts.place(padded, by_row))
      out = jax.device_get(out)
      pooled.append(out[0][: len(chunk)])
      probabilities.append(out[1][: len(chunk)])
    return Features(np.concatenate(pooled), np.concatenate(probabilities))

  return features


def round_up(batch_size: int, mesh: Mesh) -> int:
  """The smallest multiple of the mesh's devices that is >= batch_size."""
  if batch_size < 1:
    raise ValueError(f"batch_size must be at least 1, got {batch_size}")
  return -(-batch_size // mesh.size) * mesh.size


class RowSample:
  """At most `size` rows of a stream, as if it had been shuffled first.

  Which rows are kept depends on their positions in the stream only, not on
  chance nor on how the stream is cut into batches. `rows` comes in shuffled
  order, so its first n are a sample of n: taking the first rows of a data set
  sorted by class would see one class.
  """

  def __init__(self, size: int):
    if size < 1:
      raise ValueError(f"the number of rows kept must be >= 1, got {size}")
    self.size = size
    self._rng = np.random.default_rng(0)
    self._ranks = np.zeros(0)
    self._rows: np.ndarray | None = None

  def update(self, rows: Float[np.ndarray, "b d"]) -> None:
    """Offers the next rows of the stream."""
    ranks = np.concatenate([self._ranks, self._rng.random(len(rows))])
    if self._rows is not None:
      rows = np.concatenate([self._rows, rows])
    order = np.argsort(ranks, kind="stable")[: self.size]
    self._ranks, self._rows = ranks[order], rows[order]

  @property
  def rows(self) -> Float[np.ndarray, "n d"]:
    """The rows kept so far, in shuffled order."""
    if self._rows is None:
      raise ValueError("no images were given")
    return self._rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
  """The data set as a metric sees it.

  Attributes:
    moments: of the pooled features of all images.
    pooled: features of some images in shuffled order, for precision, recall
      and the kernel distance; None where only the moments are known.
    stated: whether whoever made it says which network saw the images.
  """

  moments: Moments | Gaussian
  pooled: Float[np.ndarray, "n d"] | None
  stated: bool = True


def reference_statistics(
  batches: ImageStream,
  features: FeatureFn,
  *,
  max_features: int = 10_000,
) -> Reference:
  """The reference of a data set given as batches of images in [-1, 1].

  Args:
    batches: images of the training set (the convention of published FIDs),
      prepared as for training but unflipped; rounded to bytes and back.
    features: the feature network of the metric.
    max_features: images whose features are kept, see `Reference.pooled`.
  """
  moments, kept = None, RowSample(max_features)
  for images in batches:
    pooled = features(from_uint8(to_uint8(images))).pooled
    moments = moments or Moments.empty(pooled.shape[1])
    moments = moments.update(pooled)
    kept.update(pooled)
  if moments is None:
    raise ValueError("reference statistics need images, got no batch")
  return Reference(moments=moments, pooled=kept.rows)
