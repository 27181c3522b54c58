import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.networks import CLASSIFIERS
from diffdistill.networks.classifier import LinenClassifier
from diffdistill.networks.resnet import FixedNorm, TorchResNet

# Compiling tiny networks takes longer than running them, so optimise less.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def classifier(size=8, channels=3, **fields):
  fields = {"num_classes": 5, "stem": "cifar", "width": 4} | fields
  return LinenClassifier(
    module=TorchResNet(**fields), image_shape=(size, size, channels)
  )


@pytest.mark.parametrize(
  ("depth", "count"),
  [
    # The expected counts are of torchvision's models with 1000 classes.
    (18, 11_689_512),
    (34, 21_797_672),
    (50, 25_557_032),
    (101, 44_549_160),
    (152, 60_192_808),
  ],
)
def test_parameter_counts_are_those_of_torchvision(depth, count):
  net = classifier(
    224, depth=depth, stem="imagenet", width=64, num_classes=1000
  )
  shapes = jax.eval_shape(net.init, jax.random.key(0))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize(
  ("depth", "stem", "size", "features"),
  [(18, "cifar", 32, 512), (50, "imagenet", 224, 2048)],
)
def test_feature_widths_are_those_of_the_paper(depth, stem, size, features):
  net = classifier(size, depth=depth, stem=stem, width=64)
  params = jax.eval_shape(net.init, jax.random.key(0))
  x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  output = jax.eval_shape(net.apply, params, x)
  assert output.features.shape == (2, features)
  assert output.logits.shape == (2, 5)


def test_fixed_norm_applies_a_scale_and_a_bias():
  params = {"scale": jnp.array([2.0, -1.0]), "bias": jnp.array([0.5, 0.0])}
  x = jnp.arange(4.0).reshape(2, 1, 1, 2)
  output = FixedNorm().apply({"params": params}, x)
  np.testing.assert_array_equal(
    output.reshape(2, 2), [[0.5, -1.0], [4.5, -3.0]]
  )


def test_logits_are_linear_in_features_and_a_key_changes_nothing():
  net = classifier()
  params = jit(net.init)(jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
  logits, features = jit(net.apply)(params, x)
  expected = features @ params["fc"]["kernel"]
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
  assert jnp.all(features >= 0)
  # A key turns training mode on, but this classifier has no dropout.
  trained = jit(net.apply)(params, x, key=jax.random.key(2))
  np.testing.assert_allclose(trained.logits, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"depth": 20}, "depth is 20; pass one of 18, 34, 50, 101, 152"),
    ({"stem": "tiny"}, "stem is 'tiny'; pass one of imagenet, cifar"),
    ({"num_classes": 0}, "num_classes is 0"),
    ({"width": 0}, "width is 0"),
  ],
)
def test_invalid_fields_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    classifier(**fields)


def test_the_table_of_classifiers_has_torch_resnet():
  assert CLASSIFIERS["torch_resnet"] is TorchResNet
