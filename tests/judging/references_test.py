"""References in files that this program or others wrote."""

import pathlib

import numpy as np
import pytest

from diffdistill.evaluation.features import (
  Features,
  Reference,
  reference_statistics,
)
from diffdistill.evaluation.frechet import Gaussian, Moments, frechet_distance
from diffdistill.images import from_uint8
from diffdistill.judging.references import (
  load_reference,
  require_enough_images,
  save_reference,
)

SHAPE = (2, 3, 1)
DIM = 4


def features(images):
  """A fake feature network: four mixtures of an image's six pixels."""
  mix = np.random.RandomState(0).standard_normal((6, DIM))
  pooled = (images.reshape(len(images), 6) @ mix).astype(np.float32)
  return Features(pooled, np.full((len(images), 2), 0.5, np.float32))


def load(path, **fields):
  fields = {"detector": "lines", "dim": DIM, "image_shape": SHAPE} | fields
  return load_reference(path, features=features, **fields)


@pytest.fixture
def pixels():
  return np.random.RandomState(1).randint(0, 256, (20, *SHAPE), np.uint8)


@pytest.fixture
def write(tmp_path):
  """A function that writes arrays and returns their path."""

  def write(**arrays):
    np.savez(tmp_path / "reference.npz", **arrays)
    return tmp_path / "reference.npz"

  return write


def covariance(dim=DIM):
  root = np.random.RandomState(2).standard_normal((dim, 9))
  return root @ root.T / 9


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_file_of_only_mean_and_covariance_is_read(write, dtype):
  cov, mean = covariance(), np.arange(4.0)
  path = write(mu=mean.astype(dtype), sigma=cov.astype(dtype), more=np.ones(1))
  reference = load(path)
  assert reference.pooled is None
  assert reference.moments.count is None
  np.testing.assert_allclose(reference.moments.mean, mean)
  np.testing.assert_allclose(reference.moments.cov, cov, rtol=1e-6)
  same = Gaussian(mean=mean, cov=cov)
  assert frechet_distance(reference.moments, same) < 1e-6


@pytest.mark.parametrize("name", ["images", "arr_0"])
def test_a_file_of_images_is_read_and_its_features_computed(
  write, pixels, name
):
  reference = load(write(**{name: pixels}), batch_size=7, max_features=15)
  expected = reference_statistics(
    [from_uint8(pixels)], features, max_features=15
  )
  assert reference.moments.count == 20
  np.testing.assert_allclose(reference.moments.cov, expected.moments.cov)
  np.testing.assert_array_equal(reference.pooled, expected.pooled)


def test_given_moments_are_preferred_to_moments_of_the_images(write, pixels):
  path = write(arr_0=pixels, mu=np.arange(4.0), sigma=covariance())
  reference = load(path)
  np.testing.assert_array_equal(reference.moments.mean, np.arange(4.0))
  assert reference.pooled.shape == (20, DIM)


def test_a_written_reference_is_read_again(tmp_path, pixels):
  path = tmp_path / "new" / "ours.npz"
  reference = reference_statistics([from_uint8(pixels)], features)
  save_reference(path, reference, detector="lines", image_shape=SHAPE)
  found = load(path)
  assert found.moments.count == 20
  np.testing.assert_array_equal(found.moments.mean, reference.moments.mean)
  np.testing.assert_array_equal(found.moments.cov, reference.moments.cov)
  np.testing.assert_array_equal(found.pooled, reference.pooled)
  # A reference that has only moments is also read as it was saved.
  moments = Reference(
    moments=Gaussian(mean=np.zeros(4), cov=np.eye(4)), pooled=None
  )
  save_reference(path, moments, detector="lines", image_shape=SHAPE)
  found = load(path)
  assert found.pooled is None
  assert found.moments.count is None


def refused(path, message, **fields):
  with pytest.raises(ValueError, match=message) as refusal:
    load(path, **fields)
  assert "\n" not in str(refusal.value)
  assert str(path) in str(refusal.value)


def test_statistics_of_another_network_or_image_size_are_refused(
  tmp_path, write, pixels
):
  refused(
    write(mu=np.zeros(2048), sigma=np.eye(2048)),
    "statistics of 2048 features, but lines has 4; pass statistics made with",
  )
  path = tmp_path / "ours.npz"
  reference = reference_statistics([from_uint8(pixels)], features)
  save_reference(path, reference, detector="lines", image_shape=SHAPE)
  refused(path, "of lines, but images are judged by Inc", detector="Inception")
  refused(path, r"shape \(2, 3, 1\), but .* \(3, 2, 1\)", image_shape=(3, 2, 1))


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({"label": np.ones(3)}, "neither mu and sigma nor images or arr_0"),
    ({"mu": np.zeros(4)}, "has no sigma"),
    ({"sigma": np.eye(4)}, "has no mu"),
    ({"mu": np.zeros((1, 4)), "sigma": np.eye(4)}, r"of shape \(1, 4\), sigma"),
    ({"mu": np.zeros(4, int), "sigma": np.eye(4)}, "mu in .* is int64 of"),
    (
      {"mu": np.zeros(4), "sigma": np.eye(3)},
      r"of shape \(3, 3\), are no finite mean",
    ),
    ({"mu": np.zeros(4), "sigma": np.tri(4)}, "are no finite mean"),
    ({"mu": np.zeros(4), "sigma": -np.eye(4)}, "are no finite mean and"),
    ({"mu": np.full(4, np.nan), "sigma": np.eye(4)}, "are no finite mean"),
    (
      {"mu": np.zeros(4), "sigma": np.diag([1, 1, 1, np.inf])},
      "are no finite mean",
    ),
    ({"images": np.zeros((5, *SHAPE), np.float32)}, "images in .* is float32"),
    ({"arr_0": np.zeros((5, 2, 3), np.uint8)}, "arr_0 .* store uint8 of shape"),
    ({"arr_0": np.zeros((0, *SHAPE), np.uint8)}, r"uint8 of shape \(0, 2, 3"),
    (
      {"images": np.zeros((5, 3, 2, 1), np.uint8)},
      r"images of shape \(3, 2, 1\), but the judged images are \(2, 3, 1\)",
    ),
    (
      {"mu": np.zeros(4), "sigma": np.eye(4), "pooled": np.zeros((5, 3))},
      r"pooled in .* float64 of shape \(5, 3\), but lines has 4",
    ),
  ],
)
def test_files_with_wrong_arrays_are_refused(write, arrays, message):
  refused(write(**arrays), message)


class Hostile:
  """An object that makes a file when it is unpickled, as an attack could."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def test_nothing_is_unpickled(write, tmp_path):
  trace = tmp_path / "trace"
  mean = np.array([Hostile(trace)], dtype=object)
  path = write(mu=mean, sigma=np.eye(4))
  refused(path, "damaged or holds more than plain arrays; write it with")
  assert not trace.exists()
  # NumPy does unpickle the file if it may, so the file tests what it should.
  with np.load(path, allow_pickle=True) as archive:
    assert archive["mu"] is not None
  assert trace.exists()


def test_damaged_files_are_refused(write, tmp_path):
  refused(tmp_path / "none.npz", "there is no file")
  path = write(mu=np.zeros(4), sigma=np.eye(4))
  whole = path.read_bytes()
  for data in (b"", b"PK\x03\x04", whole[:100], whole[:-30]):
    path.write_bytes(data)
    refused(path, "damaged")
  np.save(tmp_path / "lone.npy", np.ones(4))
  refused(tmp_path / "lone.npy", "neither mu and sigma nor images")


def of(count, dim=5):
  moments = Moments.empty(dim).update(np.ones((count, dim)))
  return Reference(moments=moments, pooled=None)


def test_fewer_images_than_features_are_refused():
  require_enough_images(of(6), 6)
  published = Gaussian(mean=np.zeros(5), cov=np.eye(5))
  require_enough_images(Reference(moments=published, pooled=None), 6)
  with pytest.raises(ValueError, match=r"num_images is 5, .* pass 6 or more"):
    require_enough_images(of(6), 5)
  with pytest.raises(ValueError, match=r"has 5 images, .* needs more than 5;"):
    require_enough_images(of(5), 6)
