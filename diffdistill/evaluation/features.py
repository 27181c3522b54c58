"""Features of generated images, and feature statistics of the data set.

Feature networks run in float32 at the highest matmul precision. The default
precision of accelerators (bfloat16 or TF32) would shift a Frechet distance.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from diffdistill.arrays import Image, Params
from diffdistill.evaluation.frechet import Gaussian, Moments
from diffdistill.images import ImageStream, check_finite, rounded
from diffdistill.ranges import BATCH_SIZE, Range, check_number
from diffdistill.system import hosts


class Features(NamedTuple):
  """The outputs of a feature network for a batch, float32.

  They may be on the device, and still being computed: jax.device_get waits.

  Attributes:
    pooled: features before the last layer, shape `b d`.
    probabilities: the probabilities of the classes, shape `b k`, rows sum to 1.
  """

  pooled: Any
  probabilities: Any


# A function that takes images `b h w c` in [-1, 1], on the host or a device,
# and returns the Features of each image without waiting for them.
FeatureFn = Callable[[np.ndarray | Array], Features]


@runtime_checkable
class Classifier(Protocol):
  """A network whose `apply` returns an object with `logits` and `features`."""

  def apply(self, params: Params, x: Image) -> Any: ...


def classifier_features(
  classifier: Classifier, params: Params, mesh: Mesh, *, batch_size: int = 256
) -> FeatureFn:
  """The feature function of a classifier, compiled once for one shape.

  Args:
    classifier: the network; its module must compute in float32.
    params: the weights of the network, in any sharding over `mesh`. Weights on
      one device are copied to the others at every batch.
    mesh: the devices; images are split over all axes of the mesh.
    batch_size: the number of images per call of the network, rounded up to a
      multiple of the number of devices. Longer inputs are cut and shorter
      inputs are padded, so pass the usual size of a batch.
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

  # Replicate the outputs, so that every process can read all of them.
  compiled = jax.jit(apply, out_shardings=replicated)

  def padded(images: Any, start: int) -> Any:
    """Rows from `start` on, and black ones after the last: batch_size rows."""
    chunk = images[start : start + batch_size]
    missing = batch_size - len(chunk)
    pad = np.pad if isinstance(images, np.ndarray) else jnp.pad
    return pad(chunk, ((0, missing), (0, 0), (0, 0), (0, 0)))

  on_device = jax.jit(padded, static_argnums=1, out_shardings=by_row)

  def features(images: np.ndarray | Array) -> Features:
    count = len(images)
    if count == 0:
      raise ValueError("cannot take the features of 0 images")
    parts = []
    for start in range(0, count, batch_size):
      if isinstance(images, np.ndarray):
        chunk = hosts.place(padded(images, start), by_row)
      else:
        chunk = on_device(images, start)
      parts.append(compiled(params, chunk))
    # Join and cut without indices, which would have to travel to the device.
    return Features(
      *(
        jax.lax.slice_in_dim(jnp.concatenate(part), 0, count)
        for part in zip(*parts, strict=True)
      )
    )

  return features


class Seen(NamedTuple):
  """The features of one batch, on the host.

  Attributes:
    features: the features.
    bad: the number of images that hold NaN or infinity.
    count: the number of images.
  """

  features: Features
  bad: int
  count: int


def seen(
  images: ImageStream,
  features: FeatureFn,
  ahead: Callable[[], bool] = lambda: True,
) -> Iterator[Seen]:
  """Yields the features of each batch, rounded to bytes and back before.

  The next batch is asked for before the features of the last one are read, so
  devices compute while the host measures.

  Args:
    images: batches of images in [-1, 1], or of bytes.
    features: the feature network.
    ahead: whether the next batch may be asked for already; it is asked after
      each batch.
  """
  begun: list[tuple[Features, Any, int]] = []
  for batch in images:
    images_, bad = rounded(batch)
    begun.append((features(images_), bad, len(batch)))
    while len(begun) > ahead():
      yield _read(*begun.pop(0))
  for rest in begun:
    yield _read(*rest)


def _read(found: Features, bad: Any, count: int) -> Seen:
  found, bad = jax.device_get((found, bad))
  return Seen(features=found, bad=int(bad), count=count)


def round_up(batch_size: int, mesh: Mesh) -> int:
  """The smallest multiple of the number of devices that is >= batch_size."""
  check_number("batch_size", batch_size, BATCH_SIZE)
  return -(-batch_size // mesh.size) * mesh.size


class RowSample:
  """A random sample of at most `size` rows of a stream.

  The sample depends only on positions in the stream: it is the same every time
  and for every batch size. `rows` is in shuffled order, so its first n rows are
  a sample too, even if the stream is sorted by class.
  """

  def __init__(self, size: int):
    check_number("size", size, Range(1, 10**7))
    self.size = size
    self._rng = np.random.default_rng(0)
    self._ranks = np.zeros(0)
    self._rows: np.ndarray | None = None

  def update(self, rows: Float[np.ndarray, "b d"]) -> None:
    """Adds the next rows of the stream."""
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
  """The feature statistics of a data set.

  Attributes:
    moments: the moments of the pooled features of all images.
    pooled: features of some images in shuffled order, for precision, recall and
      the kernel distance; None if only the moments are known.
    stated: whether the file says which network made the statistics.
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
  """Computes the reference of a data set from its images, batch by batch.

  Args:
    batches: images of the training set, as in published FIDs, prepared as for
      training but not flipped. They are bytes, or are rounded to bytes.
    features: the feature network of the metric.
    max_features: the number of images whose features are kept, see
      `Reference.pooled`.
  """
  moments, kept = None, RowSample(max_features)
  for found, bad, count in seen(batches, features):
    check_finite(bad, count)
    pooled = np.asarray(found.pooled)
    moments = moments or Moments.empty(pooled.shape[1])
    moments = moments.update(pooled)
    kept.update(pooled)
  if moments is None:
    raise ValueError("reference statistics need images, got no batch")
  return Reference(moments=moments, pooled=kept.rows)
