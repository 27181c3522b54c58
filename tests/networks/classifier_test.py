import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.networks import CLASSIFIERS
from diffdistill.networks.classifier import (
  Classification,
  LinenClassifier,
  ResNet,
)

# Compiling tiny networks takes longer than running them, so optimise less.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def classifier(size=8, **fields):
  fields = {"channels": 4, "multipliers": (1, 2), "num_blocks": 1} | fields
  return LinenClassifier(
    module=ResNet(num_classes=3, **fields), image_shape=(size, size, 1)
  )


def images(size, batch=2):
  return jax.random.uniform(
    jax.random.key(1), (batch, size, size, 1), minval=-1, maxval=1
  )


@pytest.mark.parametrize("size", [8, 28, 64])
def test_output_shapes_are_right_for_small_and_large_images(size):
  net = classifier(size, multipliers=(1, 2, 4, 4))
  params = jax.eval_shape(net.init, jax.random.key(0))
  output = jax.eval_shape(net.apply, params, images(size))
  assert output.logits.shape == (2, 3)
  assert output.features.shape == (2, 16)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_linear_in_features_of_float32(dtype):
  net = classifier(dtype=dtype)
  params = jit(net.init)(jax.random.key(0))
  logits, features = jit(net.apply)(params, images(8))
  assert features.dtype == logits.dtype == jnp.float32
  # The logits have no bias here, because their bias starts at zero.
  expected = features @ params["logits"]["kernel"]
  np.testing.assert_allclose(logits, expected, atol=1e-5)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
    jnp.dtype("float32")
  }
  # The features must depend on the image.
  assert jnp.max(jnp.abs(features[0] - features[1])) > 1e-3


def test_features_of_an_image_do_not_depend_on_other_images():
  net = classifier()
  params = jit(net.init)(jax.random.key(0))
  x = images(8, batch=4)
  np.testing.assert_allclose(
    jit(net.apply)(params, x).features[:1],
    jit(net.apply)(params, x[:1]).features,
    atol=1e-5,
  )


def test_a_key_enables_dropout_between_features_and_logits():
  net = classifier(dropout=0.5)
  params = jit(net.init)(jax.random.key(0))
  apply = jit(net.apply)
  off = apply(params, images(8))
  on = apply(params, images(8), key=jax.random.key(2))
  # Dropout does not change the features. The tolerance is for the rounding of
  # two different programs.
  np.testing.assert_allclose(on.features, off.features, atol=1e-5)
  assert jnp.max(jnp.abs(on.logits - off.logits)) > 1e-3


def test_every_parameter_and_pixel_changes_the_output():
  net = classifier()
  params = jit(net.init)(jax.random.key(0))

  def total(params, x):
    return jnp.sum(jnp.sin(net.apply(params, x).logits))

  grads = jit(jax.grad(total, argnums=(0, 1)))(params, images(8))
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    assert jnp.any(grad != 0), jax.tree_util.keystr(path)
  assert jnp.all(grads[1] != 0)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"dtype": "half"}, "dtype is 'half'; pass one of"),
    ({"num_blocks": 0}, "num_blocks is 0"),
    ({"multipliers": (1, 0)}, "multipliers is"),
    ({"dropout": -0.1}, r"dropout is -0\.1"),
  ],
)
def test_invalid_fields_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    classifier(**fields)


def test_wrong_image_shape_is_refused():
  net = classifier(8)
  params = jax.eval_shape(net.init, jax.random.key(0))
  with pytest.raises(ValueError, match=r"but this classifier is for \(8, 8"):
    jax.eval_shape(net.apply, params, images(16))


def test_the_table_of_classifiers_has_resnet():
  assert CLASSIFIERS["resnet"] is ResNet


class Fed(nn.Module):
  """A module that returns its input as features and logits."""

  @nn.compact
  def __call__(self, x, train):
    features = x.reshape(x.shape[0], -1)
    return Classification(logits=features, features=features)


def fed(x, **fields):
  net = LinenClassifier(module=Fed(), image_shape=x.shape[1:], **fields)
  return net.apply({}, x).features


@pytest.mark.parametrize(
  ("name", "mean", "std"),
  [
    ("cifar10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
  ],
)
def test_the_module_receives_normalised_images(name, mean, std):
  x = jax.random.uniform(jax.random.key(0), (2, 1, 1, 3), minval=-1.0)
  expected = ((np.asarray(x).reshape(2, 3) + 1) / 2 - mean) / std
  np.testing.assert_allclose(fed(x, normalisation=name), expected, rtol=1e-5)
  # Without normalisation, the module receives exactly the same images.
  np.testing.assert_array_equal(fed(x), x.reshape(2, 3))
  raw = LinenClassifier(
    module=Fed(), image_shape=(1, 1, 3), normalisation=name
  ).unnormalised
  np.testing.assert_array_equal(raw.apply({}, x).features, x.reshape(2, 3))


def test_the_module_receives_resized_images():
  x = jnp.array([[0.0, 1.0], [0.0, 1.0]]).reshape(1, 2, 2, 1)
  larger = fed(x, resize=4).reshape(4, 4)
  # A resize that aligned corners would give 0, 1/3, 2/3 and 1.
  expected = np.broadcast_to([0.0, 0.25, 0.75, 1.0], (4, 4))
  np.testing.assert_allclose(larger, expected, atol=1e-6)
  # The dense layer must fit the resized images, which are 4x4.
  net = LinenClassifier(module=MLPHead(), image_shape=(2, 2, 1), resize=4)
  params = net.init(jax.random.key(0))
  assert params["head"]["kernel"].shape == (16, 3)
  assert net.apply(params, x).logits.shape == (1, 3)


class MLPHead(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    features = x.reshape(x.shape[0], -1)
    logits = nn.Dense(3, name="head")(features)
    return Classification(logits=logits, features=features)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"normalisation": "x"}, "is 'x'; pass one of signed, cifar10, imagenet"),
    ({"normalisation": "cifar10"}, "of 3 channels, but images have 1; pass"),
    ({"resize": -1}, "resize is -1; pass 0 or more"),
  ],
)
def test_invalid_normalisation_and_resize_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    fed(jnp.zeros((1, 2, 2, 1)), **fields)
