"""Toy networks and their losses, for tests of moment matching."""

import dataclasses

import jax
import jax.numpy as jnp

from diffdistill.arrays import UNCONDITIONAL
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.precondition import Identity
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import Cosine
from diffdistill.networks.analytic import GaussianMixture
from diffdistill.objectives.moment_matching import (
  MomentMatching,
  ParameterMomentMatching,
)
from diffdistill.sampling.ancestral import Ancestral
from tests.objectives.given import (
  MIXTURE,
  OneTime,
  batch_of,
  loss_of,
)

KINDS = (MomentMatching, ParameterMomentMatching)


def gaussian(std):
  """The distribution x0 ~ N(2, std^2)."""
  return {
    "means": jnp.full((1, 1, 1, 1), 2.0),
    "std": jnp.array([std]),
    "logits": jnp.zeros(1),
  }


@dataclasses.dataclass(frozen=True)
class Blend(OneTime):
  """A network: slope x + shift + a weighted sum of exact denoisers."""

  exact: GaussianMixture

  def init(self, key):
    return {"slope": jnp.zeros(()), "shift": jnp.zeros(()), "exact": []}

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    out = params["slope"] * x + params["shift"]
    for share, mixture in params["exact"]:
      out = out + share * self.exact.apply(mixture, x, t)
    return out


def blend(slope=0.0, shift=0.0, *exact):
  return {
    "slope": jnp.float32(slope),
    "shift": jnp.float32(shift),
    "exact": list(exact),
  }


@dataclasses.dataclass(frozen=True)
class Listener(OneTime):
  """A network that sets half of its input to zero, and records its calls.

  The output is params[label] times the remaining input.
  """

  heard: list

  def init(self, key):
    return jnp.zeros(3)

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    label = condition.label
    self.heard.append({"x": x, "t": t, "label": label, "key": key})
    if key is not None:
      x = x * jax.random.bernoulli(key, 0.5, x.shape)
    gain = params[0] if label is None else params[label][:, None, None, None]
    return gain * x


@dataclasses.dataclass(frozen=True)
class Table(OneTime):
  """A network that outputs one constant image for each label."""

  def init(self, key):
    return jnp.zeros(3)

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    values = params[condition.label]
    return jnp.broadcast_to(values[:, None, None, None], x.shape)


def objective(kind, network, schedule=Cosine(), model=None, **fields):  # noqa: B008
  process = GaussianProcess(schedule=schedule)
  denoiser = Denoiser(
    network=network,
    process=process,
    precondition=Identity(noise="time"),
    **(model or {}),
  )
  if kind is ParameterMomentMatching:
    fields = {"preconditioner": "identity"} | fields
  return kind(denoiser=denoiser, sampler=Ancestral(process=process), **fields)


def moment_loss_of(
  goal, name, trees, image, key, num_steps=4, guided=1, label=None, **frozen
):
  """Computes (loss, metrics) of a turn for (student, auxiliary, teacher)."""
  named = zip(("student", "auxiliary", "teacher"), trees, strict=True)
  return loss_of(
    goal,
    {**dict(named), **frozen},
    batch_of(image, label),
    key,
    (name,),
    num_steps=num_steps,
    guided=guided,
  )


def compiled_gradient(goal, trees, image, key, **fields):
  run = jax.jit(lambda *args: student_gradient(goal, *args, **fields))
  return run(trees, image, key)


def student_gradient(goal, trees, image, key, **fields):
  def loss(student):
    return moment_loss_of(
      goal, "student", (student, *trees[1:]), image, key, **fields
    )

  return jax.value_and_grad(loss, has_aux=True)(trees[0])


def mean_of(metric):
  total, count = metric
  return float(total / count)


def calls_of(kind, name, seed=0, label=None, model=None, **fields):
  """Lists the calls of the network in one loss of six images, in order."""
  heard = []
  goal = objective(kind, Listener(heard), model=model, **fields)
  trees = (jnp.full(3, 0.5),) * 3

  @jax.jit
  def run(x0, key):
    heard.clear()
    moment_loss_of(goal, name, trees, x0, key, label=label)
    return list(heard)

  return run(images(6), jax.random.key(seed))


def images(n, seed=0, data=MIXTURE):
  return GaussianMixture(schedule=Cosine()).sample(
    data, jax.random.key(seed), n
  )
