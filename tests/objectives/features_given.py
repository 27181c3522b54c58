"""Helpers for tests of classifier features: linear networks, sums by hand."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffdistill.arrays import UNCONDITIONAL
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.precondition import Identity
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import Cosine
from diffdistill.objectives.classifier_features import (
  ClassifierFeatures,
)
from diffdistill.objectives.progressive import two_step_target
from diffdistill.sampling.ddim import DDIM
from tests.objectives.given import OneTime, batch_of, loss_of

PROCESS = GaussianProcess(schedule=Cosine())
RANDOM = np.random.default_rng(0)
WEIGHTS = {
  "features": RANDOM.normal(size=(2, 5)).astype(np.float32),
  "logits": RANDOM.normal(size=(5, 3)).astype(np.float32),
}
TEACHER = {"scale": jnp.float32(0.5), "offset": jnp.float32(0.2)}
STUDENT = {"scale": jnp.float32(0.9), "offset": jnp.float32(-0.1)}
IMAGES = jnp.asarray(RANDOM.normal(size=(16, 1, 1, 2)), jnp.float32)


class Output(NamedTuple):
  logits: jax.Array
  features: jax.Array


@dataclasses.dataclass(frozen=True)
class Linear:
  """A classifier with features W x of an image x, and logits V W x."""

  def init(self, key):
    return WEIGHTS

  def apply(self, params, x, *, key=None):
    assert key is None
    features = x.reshape(x.shape[0], -1) @ params["features"]
    return Output(logits=features @ params["logits"], features=features)


@dataclasses.dataclass(frozen=True)
class Affine(OneTime):
  """A network that outputs scale x + offset, and records its calls."""

  heard: list = dataclasses.field(default_factory=list)

  def init(self, key):
    return {}

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    assert s is None
    assert key is None
    self.heard.append((x, t, condition.label))
    return params["scale"] * x + params["offset"]


def objective(network=None, **fields):
  denoiser = Denoiser(
    network=network or Affine(),
    process=PROCESS,
    precondition=Identity(noise="time"),
  )
  fields = {
    "denoiser": denoiser,
    "classifier": Linear(),
    "sampler": DDIM(process=PROCESS),
  } | fields
  return ClassifierFeatures(**fields)


def evaluate(goal, student, teacher, key=0, num_steps=4, **options):
  """Computes (loss, metrics, gradients, calls of the network), compiled."""
  frozen = {"teacher": teacher, "classifier": options.get("weights", WEIGHTS)}
  batch = batch_of(options.get("image", IMAGES), options.get("label"))
  heard = getattr(goal.denoiser.network, "heard", [])

  def loss(student, frozen, num_steps, guided):
    heard.clear()
    loss, metrics = loss_of(
      goal,
      {"student": student, **frozen},
      batch,
      jax.random.key(key),
      num_steps=num_steps,
      guided=guided,
    )
    return loss, (metrics, list(heard))

  (loss, (metrics, heard_)), gradients = jax.jit(
    jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
  )(student, frozen, num_steps, jnp.float32(options.get("guided", 1)))
  return loss, metrics, gradients, heard_


def constant(value):
  """Makes the weights of a network that always outputs `value`."""
  return {"scale": jnp.float32(0.0), "offset": jnp.float32(value)}


def softmax(x):
  e = np.exp(x - x.max(1, keepdims=True))
  return e / e.sum(1, keepdims=True)


def by_hand(goal, heard):
  """Computes the loss and its gradients by scale and offset, by (1) to (4).

  The equations are those of classifier_features.py.
  """
  (x_t, t, _), (_, mid, _), _ = heard
  teacher = goal.denoiser.bind(TEACHER)
  target = two_step_target(PROCESS, teacher, x_t, t, mid, 2 * mid - t)
  x_t, target = (
    np.asarray(x, np.float64).reshape(16, 2) for x in (x_t, target)
  )
  weight, top = (np.float64(WEIGHTS[name]) for name in ("features", "logits"))
  student = np.float64(STUDENT["scale"]) * x_t + np.float64(STUDENT["offset"])

  p, q = softmax(target @ weight / goal.temperature), softmax(student @ weight)
  loss = np.mean(np.sum(p * np.log(p / q), axis=1))
  to_features = (q - p) / 16
  # The array c holds the class probabilities of each image, for equations (2)
  # to (4).
  c = softmax(student @ weight @ top)
  mean = c.mean(0)
  unsure = -np.sum(c * np.log(c), axis=1, keepdims=True)
  even = np.sum(mean * np.log(mean))
  beta, gamma = goal.dataset_weight, goal.entropy_share
  loss += beta * (gamma * unsure.mean() + (1 - gamma) * even)
  log_mean = np.log(mean)[None, :]
  to_logits = -gamma * c * (np.log(c) + unsure)
  to_logits += (1 - gamma) * (
    c * (log_mean - np.sum(c * log_mean, axis=1, keepdims=True))
  )
  to_features += beta * to_logits @ top.T / 16
  to_image = to_features @ weight.T
  return loss, {"scale": np.sum(to_image * x_t), "offset": np.sum(to_image)}
