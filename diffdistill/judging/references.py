"""Reads and writes reference statistics: published moments, or images.

An .npz may hold

  mu, sigma          mean and covariance of features, as pytorch-fid writes them
  images or arr_0    uint8 of shape (n, h, w, c), as in the reference batches of
                     Dhariwal & Nichol 2021; their features are computed here

If a file holds both, the Frechet distance uses mu and sigma, and precision,
recall and the kernel distance use the images. Moments that were made with
TensorFlow's graph, such as those of EDM and ADM, are of images that were
resized and scaled in another way. A distance to them is no comparable FID, and
the result says that the file does not state its resizer. A file that this
module writes holds mu, sigma and

  pooled             features of some of the images; empty if unknown
  num_images         the number of images of mu and sigma; 0 if unknown
  detector           the network's name
  image_shape        the shape of the images that the network saw
"""

import io

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8

from diffdistill.evaluation.features import (
  FeatureFn,
  Reference,
  reference_statistics,
)
from diffdistill.evaluation.frechet import Gaussian
from diffdistill.system.archives import check_unpacked_size
from diffdistill.system.files import write_atomically

IMAGES = ("images", "arr_0")
LEAST_KEPT = 10
STATISTICS = ("mu", "sigma", "pooled", "num_images", "detector", "image_shape")
Arrays = dict[str, np.ndarray]


def load_reference(
  path: epath.PathLike,
  *,
  detector: str,
  dim: int,
  image_shape: tuple[int, int, int],
  features: FeatureFn,
  batch_size: int = 256,
  max_features: int = 10_000,
) -> Reference:
  """Loads the reference of an .npz file; the file's format is described above.

  Args:
    path: the path of the file, local or in a bucket.
    detector: the name of the feature network.
    dim: the number of features of the network.
    image_shape: (h, w, c) of the judged images.
    features: the feature network, for a file of images.
    batch_size: the number of images in a batch.
    max_features: the number of images whose features are kept, see
      `Reference.pooled`.

  Raises:
    ValueError: if the file is missing, damaged or holds more than arrays, or if
      its statistics are of another network or another image size.
  """
  path = epath.Path(path)
  arrays = _read(path)
  _check_made_for(path, arrays, detector, image_shape)
  gaussian = _gaussian(path, arrays, detector, dim)
  stated = "detector" in arrays
  pooled = _pooled(path, arrays, detector, dim)
  found = [name for name in IMAGES if name in arrays]
  if found:
    images = _checked(path, found[0], arrays[found[0]], image_shape)
    starts = range(0, len(images), batch_size)
    seen = reference_statistics(
      (images[i : i + batch_size] for i in starts),
      features,
      max_features=max_features,
    )
    return Reference(
      moments=gaussian or seen.moments, pooled=seen.pooled, stated=stated
    )
  if gaussian is None:
    raise ValueError(
      f"{path} has neither mu and sigma nor images or arr_0; pass an .npz of"
      " statistics or of images"
    )
  if pooled is not None and not np.isfinite(pooled).all():
    raise ValueError(
      f"pooled in {path} has features that are not finite; make the file again"
    )
  # Precision and recall need more kept features than nearest neighbours.
  kept = pooled is not None and len(pooled) > LEAST_KEPT
  return Reference(
    moments=gaussian, pooled=pooled if kept else None, stated=stated
  )


def save_reference(
  path: epath.PathLike,
  reference: Reference,
  *,
  detector: str,
  image_shape: tuple[int, int, int],
) -> None:
  """Writes a reference that `load_reference` and pytorch-fid can read."""
  moments, pooled = reference.moments, reference.pooled
  data = io.BytesIO()
  np.savez(
    data,
    mu=moments.mean,
    sigma=moments.cov,
    pooled=np.zeros((0, len(moments.mean))) if pooled is None else pooled,
    num_images=np.array(moments.count or 0),
    detector=np.array(detector),
    image_shape=np.array(image_shape),
  )
  write_atomically(path, data.getvalue())


def require_enough_images(reference: Reference, num_images: int) -> None:
  """Refuses a Frechet distance with fewer images than features.

  With so few images the covariance is singular, and the distance depends on the
  number of images more than on the model. A reference that does not state its
  number of images is not refused.

  Args:
    reference: the reference of the data.
    num_images: the number of generated images.

  Raises:
    ValueError: if there are too few images of either kind.
  """
  dim, count = len(reference.moments.mean), reference.moments.count
  if count is not None and count <= dim:
    raise ValueError(
      f"the reference has {count} images, but a covariance of {dim} features"
      f" needs more than {dim}; pass the statistics of more images, or judge by"
      " a classifier with fewer features"
    )
  if num_images <= dim:
    raise ValueError(
      f"num_images is {num_images}, but a covariance of {dim} features needs"
      f" more than {dim}; pass {dim + 1} or more, usually 50000, or judge by a"
      " classifier with fewer features"
    )


def _read(path: epath.Path) -> Arrays:
  """Reads those arrays of a reference file whose names have a meaning."""
  if not path.is_file():
    raise ValueError(
      f"there is no file {path}; pass an .npz of mu and sigma, or of images"
    )
  check_unpacked_size(path)
  try:
    with path.open("rb") as opened:
      archive = np.load(opened, allow_pickle=False)
      # For an .npy file, NumPy returns an array, which has no members.
      names = () if isinstance(archive, np.ndarray) else archive.files
      wanted = (*STATISTICS, *IMAGES)
      return {name: archive[name] for name in wanted if name in names}
  # NumPy raises many kinds of errors for damaged archives and for objects.
  except Exception as error:
    raise ValueError(
      f"{path} is damaged or holds more than plain arrays; write it with"
      " np.savez(path, mu=..., sigma=...)"
    ) from error


def _check_made_for(
  path: epath.Path,
  arrays: Arrays,
  detector: str,
  image_shape: tuple[int, int, int],
) -> None:
  """Refuses statistics of another network or another image shape."""
  if "detector" in arrays and str(arrays["detector"]) != detector:
    raise ValueError(
      f"{path} has statistics of {arrays['detector']}, but images are judged by"
      f" {detector}; pass statistics made with it"
    )
  if "image_shape" in arrays:
    shape = tuple(arrays["image_shape"].ravel().tolist())
    if shape != image_shape:
      raise ValueError(
        f"{path} has statistics of images of shape {shape}, but the judged"
        f" images are {image_shape}; pass statistics of the same size"
      )


def _gaussian(
  path: epath.Path, arrays: Arrays, detector: str, dim: int
) -> Gaussian | None:
  """Checks the mean and covariance of a reference file; None if it has none."""
  missing = [name for name in ("mu", "sigma") if name not in arrays]
  if len(missing) == 2:
    return None
  if missing:
    raise ValueError(
      f"{path} has no {missing[0]}; pass a file with mu and sigma"
    )
  mean, cov = arrays["mu"], arrays["sigma"]
  if mean.dtype.kind != "f" or mean.ndim != 1 or cov.dtype.kind != "f":
    raise ValueError(
      f"mu in {path} is {mean.dtype} of shape {mean.shape}, sigma {cov.dtype};"
      " store floats of shapes (d,) and (d, d)"
    )
  if len(mean) != dim:
    raise ValueError(
      f"{path} has statistics of {len(mean)} features, but {detector} has"
      f" {dim}; pass statistics made with it"
    )
  mean, cov = mean.astype(np.float64), cov.astype(np.float64)
  if not _is_covariance(cov, dim) or not np.isfinite(mean).all():
    raise ValueError(
      f"mu and sigma in {path}, of shape {cov.shape}, are no finite mean and"
      f" symmetric covariance of {dim} features; make them again"
    )
  count = arrays.get("num_images", np.zeros(0, int))
  known = count.size == 1 and count.dtype.kind in "iu"
  return Gaussian(
    mean=mean, cov=cov, count=int(count.item()) or None if known else None
  )


def _pooled(
  path: epath.Path, arrays: Arrays, detector: str, dim: int
) -> Float[np.ndarray, "n d"] | None:
  """Checks the kept features of a reference file; None if it has none."""
  pooled = arrays.get("pooled")
  if pooled is not None and (
    pooled.dtype.kind != "f" or pooled.ndim != 2 or pooled.shape[1] != dim
  ):
    raise ValueError(
      f"pooled in {path} is {pooled.dtype} of shape {pooled.shape}, but"
      f" {detector} has {dim} features; make the file again"
    )
  return pooled


def _is_covariance(cov: Float[np.ndarray, "..."], dim: int) -> bool:
  if cov.shape != (dim, dim) or not np.isfinite(cov).all():
    return False
  # A float32 file is symmetric only up to rounding.
  slack = 1e-5 * np.abs(cov).max()
  return bool(
    np.abs(cov - cov.T).max() <= slack and np.diagonal(cov).min() >= 0
  )


def _checked(
  path: epath.Path,
  name: str,
  images: np.ndarray,
  image_shape: tuple[int, int, int],
) -> UInt8[np.ndarray, "n h w c"]:
  """Checks that the images of a reference file are bytes of the right size."""
  if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
    raise ValueError(
      f"{name} in {path} is {images.dtype} of shape {images.shape}; store uint8"
      " of shape (n, h, w, c)"
    )
  if images.shape[1:] != image_shape:
    raise ValueError(
      f"{name} in {path} has images of shape {images.shape[1:]}, but the"
      f" judged images are {image_shape}; pass a reference of the same size"
    )
  return images
