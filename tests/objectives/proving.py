"""Objectives that test the interface of objectives; they belong to no paper."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from diffdistill.denoiser import Denoiser
from diffdistill.objectives.objective import (
  Objective,
  Passes,
  Tree,
  summed,
  weighted_loss,
)
from diffdistill.sampling.sampler import Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class AverageTarget(Objective):
  """A student whose target is its own moving average at an earlier time.

  This is consistency distillation with a target network (Song et al. 2023, Eq.
  7). One DDIM step of the teacher goes from t to s. The student at t learns the
  prediction of its average at s.
  """

  denoiser: Denoiser
  sampler: Sampler

  rounds: ClassVar[str] = "each"

  @property
  def trees(self) -> Mapping[str, Tree]:
    return {"student": Tree(start="teacher", averages={"target": 0.5})}

  @property
  def product(self) -> str:
    return "student/target"

  def passes(self, turn, num_steps, guided):
    return Passes(forward=2, gradient=1)

  def loss(self, turn, trees, batch, key, now):
    x0, condition = batch["image"], batch["condition"]
    process, key_t, key_eps = self.denoiser.process, *jax.random.split(key)
    t = jax.random.uniform(key_t, x0.shape[:1], minval=0.5)
    # The step t - s becomes shorter as the round progresses.
    s = t - 0.25 * (1 - 0.5 * now.progress) / now.num_steps
    x_t = process.diffuse(x0, jax.random.normal(key_eps, x0.shape), t)
    teacher = self.denoiser.bind(trees["teacher"], condition)
    x_s = process.ddim(x_t, teacher(x_t, t), t, s)
    target = self.denoiser(trees["student/target"], x_s, s, condition).x0
    student = self.denoiser(trees["student"], x_t, t, condition).x0
    loss, _ = weighted_loss(
      jax.lax.stop_gradient(target), student, jnp.ones_like(t)
    )
    return jnp.mean(loss), {"student/loss": summed(loss)}


class Head:
  """A linear map from features to one number for each image."""

  def __init__(self, size: int):
    self.size = size

  def init(self, key):
    return {"w": 0.1 * jax.random.normal(key, (self.size,))}

  @staticmethod
  def apply(params, features):
    return features.reshape(features.shape[0], -1) @ params["w"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CriticAndHead(Objective):
  """A one-step student, a critic that follows it, and a head on its features.

  This is similar to DMD2 (Yin et al. 2024). The critic denoises the student's
  images. The head learns from the critic's features to tell the student's
  images from real images. Critic and head have five updates for one update of
  the student. The student moves its images from the critic's prediction towards
  the teacher's, and towards images that the head takes for real. Unlike the
  paper, the critic has no gradient from real images.
  """

  denoiser: Denoiser
  sampler: Sampler

  rounds: ClassVar[str] = "one_step"

  @property
  def _place(self) -> str:
    return self.denoiser.features[-1]

  @property
  def trees(self) -> Mapping[str, Tree]:
    width = getattr(self.denoiser.network, "module").width  # noqa: B009
    return {
      "student": Tree(start="teacher"),
      "critic": Tree(start="teacher"),
      "head": Tree(network=Head(width)),
    }

  @property
  def cycle(self):
    return (("critic", "head"),) * 5 + (("student",),)

  @property
  def features(self):
    return (self._place,)

  def passes(self, turn, num_steps, guided):
    if turn == ("student",):
      # The gradient by the image goes through the critic only up to the
      # features that the head uses.
      return Passes(forward=1, gradient=1, trunk_gradient=1)
    return Passes(forward=1, gradient=1, trunk=1)

  def loss(self, turn, trees, batch, key, now):
    real, condition = batch["image"], batch["condition"]
    keys = jax.random.split(key, 4)
    noise, eps, other = (jax.random.normal(k, real.shape) for k in keys[:3])
    s = jax.random.uniform(keys[3], real.shape[:1], minval=0.1, maxval=0.9)
    process, one = self.denoiser.process, jnp.ones_like(s)
    x0 = self.denoiser(trees["student"], noise, one, condition).x0

    def look(critic, image, noise):
      x_s = process.diffuse(image, noise, s)
      prediction, features = self.denoiser.look(
        critic, x_s, s, condition, names=(self._place,)
      )
      logit = Head.apply(trees["head"], features[self._place])
      return x_s, prediction.x0, logit

    if turn == ("student",):
      x_s, critic, logit = look(trees["critic"], x0, eps)
      x_s, critic = jax.lax.stop_gradient((x_s, critic))
      teacher = self.denoiser(trees["teacher"], x_s, s, condition).x0
      push = jnp.mean(x0 * (critic - teacher), axis=(1, 2, 3))
      loss = push + 0.1 * jax.nn.softplus(-logit)
      return jnp.mean(loss), {"student/loss": summed(loss)}
    x0 = jax.lax.stop_gradient(x0)
    _, critic, fake = look(trees["critic"], x0, eps)
    fixed = jax.lax.stop_gradient(trees["critic"])
    _, _, true = look(fixed, real, other)
    denoised, _ = weighted_loss(x0, critic, one)
    told = jax.nn.softplus(fake) + jax.nn.softplus(-true)
    metrics = {"critic/loss": summed(denoised), "head/loss": summed(told)}
    return jnp.mean(denoised + told), metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class AverageNoise(Objective):
  """A network with two times that predicts the mean of eps between t and s.

  This is MeanFlow (Geng et al. 2025) for any schedule. With y = x / alpha and
  tau = sigma / alpha, the flow is dy/dtau = eps. So the mean e of eps over
  [s, t] satisfies e = eps - (tau_t - tau_s) de/dtau, taken along the flow.
  """

  denoiser: Denoiser
  sampler: Sampler

  rounds: ClassVar[str] = "one_step"

  def passes(self, turn, num_steps, guided):
    return Passes(forward=1, gradient=1, input_tangent=1)

  def loss(self, turn, trees, batch, key, now):
    x0, condition = batch["image"], batch["condition"]
    process, schedule = self.denoiser.process, self.denoiser.process.schedule
    key_t, key_s, key_eps = jax.random.split(key, 3)
    t = jax.random.uniform(key_t, x0.shape[:1], minval=0.3, maxval=0.8)
    s = t * jax.random.uniform(key_s, t.shape, minval=0.3)
    x_t = process.diffuse(x0, jax.random.normal(key_eps, x0.shape), t)
    teacher = self.denoiser.bind(trees["teacher"], condition)(x_t, t, t)
    fixed = jax.lax.stop_gradient(trees["student"])
    student = self.denoiser.exact.bind(fixed, condition)

    def tau(t):
      return schedule.sigma(t) / schedule.alpha(t)

    _, tau_rate = jax.jvp(tau, (t,), (jnp.ones_like(t),))
    _, rate = jax.jvp(
      lambda x, t: student(x, t, s).eps,
      (x_t, t),
      (process.velocity(teacher, x_t, t), jnp.ones_like(t)),
    )
    gap = ((tau(t) - tau(s)) / tau_rate).reshape(-1, 1, 1, 1)
    target = jax.lax.stop_gradient(teacher.eps - gap * rate)
    mean = self.denoiser(trees["student"], x_t, t, condition, s=s).eps
    loss, _ = weighted_loss(target, mean, jnp.ones_like(t))
    return jnp.mean(loss), {"student/loss": summed(loss)}


PROVING = {
  "critic_and_head": CriticAndHead,
  "average_noise": AverageNoise,
  "average_target": AverageTarget,
}
