"""The classifier whose features judge the students, and can also teach them."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from diffdistill.arrays import Batch, Image, Key
from diffdistill.objectives.objective import (
  Classifier,
  Loss,
  Now,
  Objective,
  Passes,
  Tree,
  Trees,
  Turn,
  summed,
)
from diffdistill.ranges import Range, Share, check_ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Objective):
  """Trains a run's judge: a classifier, by cross-entropy on labelled images.

  Args:
    classifier: the architecture that is trained.
    label_smoothing: the share of each target's probability that is spread
      evenly over all classes.
    noise: the standard deviation of Gaussian noise that is added to the images
      as an augmentation; 0 for none.
    crop: the largest shift of an image along each axis, in pixels, as an
      augmentation. Uncovered pixels become 0, the middle of the range. 0 for
      none.
  """

  classifier: Classifier
  label_smoothing: Share = 0.0
  noise: Annotated[float, Range(0, 10)] = 0.0
  crop: Annotated[int, Range(0, 2**14)] = 0

  rounds: ClassVar[str] = "one"

  def __post_init__(self):
    check_ranges(self)

  @property
  def sampler(self) -> None:
    return None

  @property
  def trees(self) -> Mapping[str, Tree]:
    return {"classifier": Tree(network=self.classifier)}

  @property
  def needs(self) -> Mapping[str, str]:
    return {}

  def passes(self, turn: Turn, num_steps: int, guided: bool) -> Passes:
    return Passes(classifier_gradient=1)

  def loss(
    self, turn: Turn, trees: Trees, batch: Batch, key: Key, now: Now
  ) -> Loss:
    x0, label = batch["image"], batch["condition"].label
    if self.crop:
      key, key_crop = jax.random.split(key)
      x0 = shifted(x0, key_crop, self.crop)
    key_noise, key_dropout = jax.random.split(key)
    x0 = x0 + self.noise * jax.random.normal(key_noise, x0.shape)
    logits = self.classifier.apply(
      trees["classifier"], x0, key=key_dropout
    ).logits
    target = optax.smooth_labels(
      jax.nn.one_hot(label, logits.shape[-1]), self.label_smoothing
    )
    loss = optax.softmax_cross_entropy(logits, target)
    correct = (jnp.argmax(logits, axis=-1) == label).astype(jnp.float32)
    metrics = {
      "classifier/loss": summed(loss),
      "classifier/accuracy": summed(correct),
    }
    return jnp.mean(loss), metrics


def shifted(x0: Image, key: Key, most: int) -> Image:
  """Shifts each image by a random number of pixels; zeros fill its edges.

  Args:
    x0: the images.
    key: the key of the shifts, uniform in {-most, ..., most} along each axis.
    most: the largest shift, in pixels.
  """
  b, h, w, c = x0.shape
  pad = (most, most)
  padded = jnp.pad(x0, ((0, 0), pad, pad, (0, 0)))
  # This is the corner of each new image within its padded image.
  starts = jax.random.randint(key, (b, 2), 0, 2 * most + 1)

  def window(image: Array, start: Array) -> Array:
    return jax.lax.dynamic_slice(image, (start[0], start[1], 0), (h, w, c))

  return jax.vmap(window)(padded, starts)
