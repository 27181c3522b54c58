"""Image number i is the same for any batch size and mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.evaluation.features import Features, reference_statistics
from diffdistill.evaluation.generator import Generator
from diffdistill.evaluation.metrics import distance
from diffdistill.images import to_host

Auto = jax.sharding.AxisType.Auto


def make_mesh(*shape):
  names = ("data", "fsdp")[: len(shape)]
  devices = jax.devices()[: int(np.prod(shape))]
  return jax.make_mesh(
    shape, names, axis_types=(Auto,) * len(shape), devices=devices
  )


def damped(params, x, label, key, num_steps):
  """A sampler with a loop over traced steps; labels shift the result."""
  del key
  x = jax.lax.fori_loop(0, num_steps, lambda _, x: params * x, x)
  if label is None:
    return x
  return x + label.astype(jnp.float32)[:, None, None, None]


def noisy(params, x, label, key, num_steps):
  del params, label, num_steps
  return x + jax.random.normal(key, x.shape)


def make(sample=damped, mesh=None, batch_size=8, num_classes=3, **fields):
  return Generator(
    sample=sample,
    image_shape=(2, 3, 1),
    num_classes=num_classes,
    mesh=mesh or make_mesh(1),
    batch_size=batch_size,
    **fields,
  )


def collect(
  generator, *, num_images=13, num_steps=2, seed=5, params=0.5, first=0
):
  params = jnp.asarray(params)
  batches = generator.batches(params, seed, num_images, num_steps, first)
  return np.concatenate([to_host(images) for images in batches])


@pytest.mark.parametrize(
  ("shape", "batch_size"), [((1,), 4), ((2,), 6), ((8,), 16), ((4, 2), 8)]
)
def test_image_i_is_the_same_for_any_batch_size_and_mesh(shape, batch_size):
  expected = collect(make(batch_size=13))
  images = collect(make(mesh=make_mesh(*shape), batch_size=batch_size))
  assert images.shape == (13, 2, 3, 1)
  np.testing.assert_allclose(images, expected, rtol=1e-6, atol=1e-7)


def test_a_stochastic_sampler_depends_on_the_batch_and_not_on_the_mesh():
  first = collect(make(noisy))
  np.testing.assert_allclose(
    collect(make(noisy, make_mesh(8))), first, rtol=1e-6, atol=1e-7
  )
  extra = first - collect(make(num_classes=0), params=1.0)
  assert len(np.unique(extra)) == extra.size


def test_noise_is_unit_gaussian_and_depends_on_seed_and_image():
  generator = make(batch_size=2048)
  noise = to_host(generator.noise(3, 0))
  assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
  assert abs(noise.std() - 1) < 5 / np.sqrt(2 * noise.size)
  assert len(np.unique(noise[:, 0, 0, 0])) == 2048
  np.testing.assert_array_equal(
    to_host(generator.noise(3, 100))[:50], noise[100:150]
  )
  assert np.abs(to_host(generator.noise(4, 0)) - noise).min() > 0


def test_batches_start_from_the_generator_s_noise_and_labels():
  generator = make(batch_size=4)
  images = collect(generator, num_images=6, num_steps=3, params=0.5)
  noise = np.concatenate([to_host(generator.noise(5, s)) for s in (0, 4)])
  labels = np.arange(6, dtype=np.float32) % 3
  expected = noise[:6] / 8 + labels[:, None, None, None]
  np.testing.assert_allclose(images, expected, rtol=1e-6)
  np.testing.assert_array_equal(np.asarray(generator.labels(4)), [1, 2, 0, 1])
  assert generator.labels(4).dtype == jnp.int32
  assert make(num_classes=0).labels(0) is None


def test_labels_are_as_frequent_as_in_the_data():
  generator = make(batch_size=10, label_counts=lambda: (9, 0, 1))
  labels = np.asarray(generator.labels(30))
  assert np.bincount(labels, minlength=3).tolist() == [9, 0, 1]
  images = collect(generator, num_images=20, num_steps=1, params=0.0)
  np.testing.assert_array_equal(
    images[:, 0, 0, 0], generator.labels_of(0, 20).astype(np.float32)
  )


def test_no_image_is_drawn_of_a_class_that_the_data_lacks():
  with pytest.raises(ValueError, match="label is 1, but the data has no image"):
    make(label=1, label_counts=lambda: (9, 0, 1))
  with pytest.raises(ValueError, match="has 2 classes, but the model has 3"):
    make(label_counts=lambda: (1, 1)).labels(0)


def test_images_may_begin_at_any_number():
  images = collect(make(), num_images=20)
  # The range begins inside a batch and crosses the end of a batch.
  np.testing.assert_array_equal(
    collect(make(), num_images=9, first=7), images[7:16]
  )


@pytest.mark.parametrize("half", [False, True])
def test_given_noise_and_labels_make_the_same_images(half):
  generator = make(half=half)
  noise, labels = generator.noise(5, 8), generator.labels(8)
  assert noise.dtype == (jnp.float16 if half else jnp.float32)
  expected = collect(generator, num_images=8, first=8)
  images = generator.images_of(
    jnp.asarray(0.5), noise.astype(jnp.float32), labels, 2
  )
  np.testing.assert_array_equal(to_host(images), expected)
  # The model sees float32 values that float16 can hold.
  assert expected.dtype == np.float32
  given = np.asarray(noise, np.float32) / 4
  label = np.asarray(labels, np.float32)[:, None, None, None]
  np.testing.assert_allclose(expected, given + label, rtol=1e-6)


def test_one_compilation_for_all_steps_seeds_and_weights():
  traces = []

  def counted(params, x, label, key, num_steps):
    traces.append(num_steps)
    return damped(params, x, label, key, num_steps)

  generator = make(counted, make_mesh(8), batch_size=8)
  for steps in (1, 2, 8):
    collect(generator, num_steps=steps, seed=steps, params=1 / steps)
  assert len(traces) == 1


def test_batches_are_split_over_all_axes_and_weights_are_not_moved():
  mesh = make_mesh(4, 2)
  spec = jax.sharding.PartitionSpec("fsdp")
  params = jax.device_put(
    jnp.full((6, 1), 0.5), jax.sharding.NamedSharding(mesh, spec)
  )

  def project(params, x, label, key, num_steps):
    del label, key, num_steps
    return (x.reshape(-1, 6) @ params)[:, :, None, None]

  generator = make(project, mesh, batch_size=8)
  (images,) = generator.batches(params, 0, 8, 1)
  assert {s.data.shape for s in images.addressable_shards} == {(1, 1, 1, 1)}
  assert params.sharding.spec == spec
  expected = to_host(generator.noise(0, 0)).sum(axis=(1, 2, 3)) / 2
  np.testing.assert_allclose(to_host(images).ravel(), expected, rtol=1e-5)


def test_generating_needs_no_implicit_transfers():
  mesh = make_mesh(4, 2)
  params = jnp.asarray(0.5)
  params = jax.device_put(
    params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  )
  generator = make(mesh=mesh)
  with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
    images = [to_host(x) for x in generator.batches(params, 1, 9, 2)]
  assert [len(x) for x in images] == [8, 1]


def test_batch_size_is_rounded_up_to_the_devices():
  assert make(mesh=make_mesh(8), batch_size=9).batch_size == 16
  assert make(mesh=make_mesh(1), batch_size=9).batch_size == 9


def test_mistakes_are_refused_in_one_line():
  explicit = jax.make_mesh(
    (1,),
    ("data",),
    axis_types=(jax.sharding.AxisType.Explicit,),
    devices=jax.devices()[:1],
  )
  with pytest.raises(ValueError, match="axes must be Auto"):
    make(mesh=explicit)
  with pytest.raises(ValueError, match="batch_size is 0; pass 1 or more"):
    make(batch_size=0)
  with pytest.raises(ValueError, match="num_classes is -1; pass 0 or more"):
    make(num_classes=-1)
  with pytest.raises(ValueError, match="num_steps is 0; pass 1 or more"):
    make().batches(jnp.ones(()), 0, 1, 0)
  with pytest.raises(ValueError, match="num_images is 0; pass 1 or more"):
    make().batches(jnp.ones(()), 0, 0, 1)
  with pytest.raises(ValueError, match="number is -1; pass 0 or more"):
    make().noise(-1, 0)


def test_a_perfect_model_of_unequal_classes_is_at_distance_zero():
  counts = (90, 0, 10)

  def perfect(params, x, label, key, num_steps):
    del params, key, num_steps
    levels = label.astype(jnp.float32)[:, None, None, None] / 2
    return jnp.broadcast_to(levels, x.shape)

  def pixels(images):
    flat = images.reshape(len(images), -1).astype(np.float32)
    return Features(flat, np.ones((len(flat), 1), np.float32))

  real = np.repeat([0.0, 0.5, 1.0], counts).astype(np.float32)
  real = np.broadcast_to(real[:, None, None, None], (100, 2, 3, 1))
  reference = reference_statistics([real], pixels)

  def distance_of(**fields):
    images = make(perfect, **fields).batches(jnp.ones(()), 0, 100, 1)
    return distance(images, pixels, reference)

  assert distance_of(label_counts=lambda: counts) < 1e-6
  assert distance_of() > 0.1
