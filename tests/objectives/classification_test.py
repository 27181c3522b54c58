import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.objectives.classification import Classification


class Answer(NamedTuple):
  logits: jax.Array
  features: jax.Array


@dataclasses.dataclass(frozen=True)
class Linear:
  """Logits linear in the mean of the image; writes down its inputs."""

  heard: list

  def init(self, key):
    return jnp.array([1.0, -1.0, 0.5])

  def apply(self, params, x, *, key=None):
    self.heard.append({"x": x, "key": key})
    mean = jnp.mean(x, axis=(1, 2, 3))
    return Answer(logits=mean[:, None] * params[None], features=mean[:, None])


BATCH = {
  "image": jnp.array([1.0, -1.0, 0.5, 2.0]).reshape(4, 1, 1, 1),
  "label": jnp.array([0, 1, 2, 0]),
}


def loss_of(goal, params):
  return goal.loss(
    "classifier", {"classifier": params}, {}, BATCH, jax.random.key(0), {}
  )


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_and_accuracy(smoothing):
  goal = Classification(classifier=Linear([]), label_smoothing=smoothing)
  params = goal.init(jax.random.key(0), {})["classifier"]
  loss, metrics = loss_of(goal, params)
  logits = np.array([[1.0, -1.0, 0.5]]) * np.array([[1.0], [-1], [0.5], [2]])
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  target = (1 - smoothing) * np.eye(3)[[0, 1, 2, 0]] + smoothing / 3
  expected = -(target * log_p).sum(1)
  assert float(loss) == pytest.approx(expected.mean(), rel=1e-5)
  total, count = metrics["classifier/loss"]
  assert float(total) == pytest.approx(expected.sum(), rel=1e-5)
  assert float(count) == 4
  # Of 1, -1, 0.5 and 2 the third is taken for class 0.
  correct, count = metrics["classifier/accuracy"]
  assert float(correct / count) == 0.75


def test_noise_is_added_to_the_image():
  heard = []
  goal = Classification(classifier=Linear(heard), noise=0.5)
  batch = {"image": jnp.zeros((4, 40, 40, 1)), "label": BATCH["label"]}
  goal.loss(
    "classifier",
    {"classifier": jnp.ones(3)},
    {},
    batch,
    jax.random.key(0),
    {},
  )
  assert float(heard[0]["x"].std()) == pytest.approx(0.5, rel=0.03)
  assert heard[0]["key"] is not None


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_refusals(smoothing):
  with pytest.raises(ValueError, match=f"label_smoothing is {smoothing}"):
    Classification(classifier=Linear([]), label_smoothing=smoothing)
