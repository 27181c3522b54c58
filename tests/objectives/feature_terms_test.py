"""Tests that the terms of the feature loss agree with sums by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.objectives.classifier_features import (
  diversity,
  entropy,
  feature_kl,
)


def test_feature_kl_agrees_with_sums_by_hand():
  target = np.log([[0.5, 0.5, 1e-30], [0.2, 0.3, 0.5]]).astype(np.float32)
  student = np.log([[0.25, 0.5, 0.25], [0.2, 0.3, 0.5]]).astype(np.float32)
  kl = feature_kl(jnp.asarray(target), jnp.asarray(student), 1.0)
  np.testing.assert_allclose(kl, [0.5 * np.log(2), 0], atol=1e-6)
  # The temperature tau acts only on the teacher. The teacher's distribution p
  # becomes p^(1 / tau), divided by its sum.
  kl = feature_kl(jnp.asarray(target[1:]), jnp.asarray(student[1:]), 0.5)
  sharp = np.array([0.04, 0.09, 0.25]) / 0.38
  expected = np.sum(sharp * np.log(sharp / [0.2, 0.3, 0.5]))
  np.testing.assert_allclose(kl, [expected], rtol=1e-5)
  # If the features are far apart, the divergence must be large but finite.
  far = jnp.array([[1e4, 0.0]])
  assert feature_kl(far, far[:, ::-1], 1.0) == pytest.approx(1e4)
  assert np.all(
    np.isfinite(jax.grad(lambda x: feature_kl(far, x, 1.0)[0])(-far))
  )


@pytest.mark.parametrize(
  ("logits", "unsure", "even"),
  [
    # The classifier is sure about each image. In the first case the images have
    # all classes in turn, in the second case they have one class.
    (1e4 * np.eye(4), 0, -np.log(4)),
    (1e4 * np.eye(4)[[1, 1, 1, 1]], 0, 0),
    # The classifier is not sure about any image.
    (np.zeros((4, 4)), np.log(4), -np.log(4)),
    (np.log([[0.9, 0.1], [0.6, 0.4]]), None, None),
  ],
)
def test_dataset_terms_agree_with_sums_by_hand(logits, unsure, even):
  if unsure is None:
    unsure = [
      -0.9 * np.log(0.9) - 0.1 * np.log(0.1),
      -0.6 * np.log(0.6) - 0.4 * np.log(0.4),
    ]
    even = 0.75 * np.log(0.75) + 0.25 * np.log(0.25)
  logits = jnp.asarray(logits, jnp.float32)
  expected = np.broadcast_to(unsure, logits.shape[:1])
  np.testing.assert_allclose(jax.jit(entropy)(logits), expected, atol=1e-6)
  np.testing.assert_allclose(jax.jit(diversity)(logits), even, atol=1e-6)
  for term in (diversity, lambda x: jnp.sum(entropy(x))):
    assert np.all(np.isfinite(jax.jit(jax.grad(term))(logits)))
