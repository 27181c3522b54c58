"""Feature functions and the reference of a data set."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.evaluation.features import (
  RowSample,
  classifier_features,
  reference_statistics,
  seen,
)
from diffdistill.images import from_uint8, to_uint8


class Classification(NamedTuple):
  logits: jax.Array
  features: jax.Array


class Linear:
  """A network that is linear in the pixels, and counts its traces."""

  def __init__(self):
    self.traces = 0

  def apply(self, params, x):
    self.traces += 1
    features = x.reshape(x.shape[0], -1) @ params
    return Classification(logits=features[:, :2], features=features)


def make_mesh(count):
  return jax.make_mesh(
    (count,),
    ("data",),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:count],
  )


def random_images(count):
  rng = np.random.default_rng(0)
  return rng.uniform(-1, 1, (count, 2, 2, 1)).astype(np.float32)


def weights():
  return jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)


@pytest.mark.parametrize("devices", [1, 8])
def test_features_are_those_of_the_network_for_any_number_of_images(devices):
  network, params = Linear(), weights()
  features = classifier_features(
    network, params, make_mesh(devices), batch_size=5
  )
  for count in (1, 5, 8, 19):
    images = random_images(count)
    out = features(images)
    pooled = images.reshape(count, 4) @ np.asarray(params)
    np.testing.assert_allclose(out.pooled, pooled, rtol=1e-5, atol=1e-6)
    odds = np.exp(pooled[:, :2])
    np.testing.assert_allclose(
      out.probabilities, odds / odds.sum(axis=1, keepdims=True), rtol=1e-5
    )
  # Short batches are padded and long ones cut, so there is one compilation.
  assert network.traces == 1


def test_matrix_products_have_the_highest_precision():
  class Recorder(Linear):
    def apply(self, params, x):
      self.precision = jax.config.jax_default_matmul_precision
      return super().apply(params, x)

  network = Recorder()
  classifier_features(network, weights(), make_mesh(1))(random_images(1))
  assert network.precision == "highest"


def test_features_need_no_implicit_transfers():
  mesh = make_mesh(8)
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  params = jax.device_put(weights(), everywhere)
  features = classifier_features(Linear(), params, mesh)
  with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
    assert features(random_images(3)).pooled.shape == (3, 3)


@pytest.mark.parametrize("count", [3, 8, 19])
def test_images_on_the_devices_have_the_same_features(count):
  mesh = make_mesh(8)
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  params = jax.device_put(weights(), everywhere)
  features = classifier_features(Linear(), params, mesh, batch_size=8)
  images = random_images(count)
  placed = jax.device_put(images, everywhere)
  with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
    found = jax.device_get(features(placed))
  expected = jax.device_get(features(images))
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert len(found.pooled) == count


def test_the_next_batch_begins_before_the_last_one_is_read():
  said = []

  def batches():
    for number in range(3):
      said.append(f"make {number}")
      yield random_images(2)

  features = classifier_features(Linear(), weights(), make_mesh(1))

  def order(**arguments):
    said.clear()
    for number, found in enumerate(seen(batches(), features, **arguments)):
      assert (found.count, found.bad) == (2, 0)
      said.append(f"read {number}")
    return [int(word.split()[1]) for word in said]

  assert order() == [0, 1, 0, 2, 1, 2]
  assert order(ahead=lambda: False) == [0, 0, 1, 1, 2, 2]


def test_features_of_zero_images_are_refused():
  features = classifier_features(Linear(), weights(), make_mesh(1))
  with pytest.raises(ValueError, match="0 images"):
    features(random_images(0))


def test_the_reference_rounds_images_to_bytes():
  features = classifier_features(Linear(), weights(), make_mesh(1))
  images = random_images(10)
  reference = reference_statistics([images[:6], images[6:]], features)
  pooled = np.asarray(features(from_uint8(to_uint8(images))).pooled)
  assert reference.moments.count == 10
  np.testing.assert_allclose(
    reference.moments.cov, np.cov(pooled.astype(np.float64), rowvar=False)
  )
  np.testing.assert_allclose(
    np.sort(reference.pooled, axis=0), np.sort(pooled, axis=0)
  )
  again = reference_statistics([to_uint8(images)], features)
  np.testing.assert_allclose(again.moments.mean, reference.moments.mean)
  unrounded = np.asarray(features(images).pooled)
  assert np.abs(reference.moments.mean - unrounded.mean(axis=0)).max() > 1e-6


def test_a_reference_of_zero_images_is_refused():
  features = classifier_features(Linear(), weights(), make_mesh(1))
  with pytest.raises(ValueError, match="no batch"):
    reference_statistics([], features)


def test_rows_kept_do_not_depend_on_batches_and_are_spread():
  stream = np.arange(1000.0)[:, None]
  whole, pieces = RowSample(100), RowSample(100)
  whole.update(stream)
  for part in np.split(stream, [1, 50, 333]):
    pieces.update(part)
  np.testing.assert_array_equal(whole.rows, pieces.rows)
  assert len(np.unique(whole.rows)) == 100
  # A uniform sample of 100 (and its first 50) has a mean of 500 +- 5 std.
  assert abs(whole.rows.mean() - 500) < 5 * 289 / 10
  assert abs(whole.rows[:50].mean() - 500) < 5 * 289 / 7


def test_all_rows_are_kept_if_there_is_room():
  kept = RowSample(10)
  kept.update(np.arange(4.0)[:, None])
  np.testing.assert_array_equal(np.sort(kept.rows[:, 0]), np.arange(4))
  with pytest.raises(ValueError, match="no images"):
    _ = RowSample(1).rows
  with pytest.raises(ValueError, match="size is 0; pass 1 or more"):
    RowSample(0)
