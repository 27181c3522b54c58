import dataclasses
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.objectives.classification import Classification
from tests.objectives.given import batch_of, loss_of


class Answer(NamedTuple):
  logits: jax.Array
  features: jax.Array


@dataclasses.dataclass(frozen=True)
class Linear:
  """A classifier with logits linear in the image's mean; records its inputs."""

  heard: list

  def init(self, key):
    return jnp.array([1.0, -1.0, 0.5])

  def apply(self, params, x, *, key=None):
    self.heard.append({"x": x, "key": key})
    mean = jnp.mean(x, axis=(1, 2, 3))
    return Answer(logits=mean[:, None] * params[None], features=mean[:, None])


LABEL = jnp.array([0, 1, 2, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_and_accuracy_agree_with_sums_by_hand(smoothing):
  goal = Classification(classifier=Linear([]), label_smoothing=smoothing)
  key = jax.random.key(0)
  batch = batch_of(jnp.array([1.0, -1.0, 0.5, 2.0]).reshape(4, 1, 1, 1), LABEL)
  loss, metrics = loss_of(goal, goal.init(key, {}), batch, key)
  logits = np.array([[1.0, -1.0, 0.5]]) * np.array([[1.0], [-1], [0.5], [2]])
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  target = (1 - smoothing) * np.eye(3)[[0, 1, 2, 0]] + smoothing / 3
  expected = -(target * log_p).sum(1)
  assert float(loss) == pytest.approx(expected.mean(), rel=1e-5)
  total, count = metrics["classifier/loss"]
  assert float(total) == pytest.approx(expected.sum(), rel=1e-5)
  assert float(count) == 4
  # Only the third image is classified wrongly: its label is 2, but the
  # classifier says 0.
  correct, count = metrics["classifier/accuracy"]
  assert float(correct / count) == 0.75


def test_noise_is_added_to_the_image():
  heard = []
  goal = Classification(classifier=Linear(heard), noise=0.5)
  batch = batch_of(jnp.zeros((4, 40, 40, 1)), LABEL)
  loss_of(goal, {"classifier": jnp.ones(3)}, batch, jax.random.key(0))
  assert float(heard[0]["x"].std()) == pytest.approx(0.5, rel=0.03)
  assert heard[0]["key"] is not None


def heard_by(goal, image, key=0):
  """Returns the images that the classifier gets, after crop and noise."""
  batch = batch_of(image, jnp.zeros(len(image), jnp.int32))
  loss_of(goal, {"classifier": jnp.ones(3)}, batch, jax.random.key(key))
  return np.asarray(goal.classifier.heard[-1]["x"])


def moved(image, down, right):
  """Shifts the image down and right with loops, with zeros at the border."""
  out = np.zeros_like(image)
  height, width, _ = image.shape
  for i in range(height):
    for j in range(width):
      if 0 <= i - down < height and 0 <= j - right < width:
        out[i, j] = image[i - down, j - right]
  return out


def test_crop_draws_every_shift_equally_often():
  goal = Classification(classifier=Linear([]), crop=2)
  image = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
  offsets = list(itertools.product(range(-2, 3), repeat=2))
  candidates = np.stack([moved(image, *offset) for offset in offsets])
  number = 2500
  seen = heard_by(goal, jnp.tile(image, (number, 1, 1, 1)))
  same = (seen[:, None] == candidates).all(axis=(2, 3, 4))
  # Each result must be exactly one of the 25 possible shifts.
  assert (same.sum(axis=1) == 1).all()
  # The mean count of each shift is 100. The tolerance of 50 is five standard
  # deviations.
  assert np.abs(same.sum(axis=0) - 100).max() < 50
  again = heard_by(goal, jnp.tile(image, (number, 1, 1, 1)), key=1)
  assert not np.array_equal(seen, again)


def test_crop_shifts_each_image_of_a_batch():
  goal = Classification(classifier=Linear([]), crop=1)
  images = np.random.default_rng(1).normal(size=(64, 3, 3, 1))
  images = images.astype(np.float32)
  for image, seen in zip(
    images, heard_by(goal, jnp.array(images)), strict=True
  ):
    offsets = itertools.product((-1, 0, 1), repeat=2)
    assert any(np.array_equal(seen, moved(image, *o)) for o in offsets)


def test_a_crop_of_zero_changes_no_bit():
  image = jnp.array(np.random.default_rng(2).normal(size=(8, 4, 4, 1)))
  goal = Classification(classifier=Linear([]), crop=0)
  np.testing.assert_array_equal(heard_by(goal, image), image)
  # With crop=0, the noise must still be drawn from this key.
  key_noise, _ = jax.random.split(jax.random.key(0))
  noisy = Classification(classifier=Linear([]), noise=0.5)
  np.testing.assert_array_equal(
    heard_by(noisy, image),
    image + 0.5 * jax.random.normal(key_noise, image.shape),
  )


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"label_smoothing": -0.1}, "label_smoothing is -0.1; pass a value in"),
    ({"label_smoothing": 1.0}, "label_smoothing is 1.0; pass a value in"),
    ({"noise": -0.1}, "noise is -0.1; pass 0 or more"),
    ({"crop": -1}, "crop is -1; pass 0 or more"),
  ],
)
def test_fields_out_of_range_are_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    Classification(classifier=Linear([]), **fields)
