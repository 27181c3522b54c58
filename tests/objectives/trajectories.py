"""Closed forms of trajectories, and networks that are linear in their weights.

The data is N(MU, STD^2), or the mixture of two modes MODES, in one dimension.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from diffdistill.arrays import UNCONDITIONAL
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.neighbours import Neighbours
from diffdistill.diffusion.precondition import Identity
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import EDM, Cosine, RectifiedFlow
from diffdistill.networks.analytic import GaussianMixture
from tests.objectives.given import OneTime, batch_of, loss_of

MU, STD = 0.7, 0.5
SCHEDULES = {
  "exploding": EDM(sigma_max=20.0),
  "preserving": Cosine(),
  "flow": RectifiedFlow(),
}
GAUSSIAN = {
  "means": jnp.full((1, 1, 1, 1), MU),
  "std": jnp.full(1, STD),
  "logits": jnp.zeros(1),
}
MODES = {
  "means": jnp.array([-1.0, 0.8]).reshape(2, 1, 1, 1),
  "std": jnp.array([0.15, 0.3]),
  "logits": jnp.log(jnp.array([0.3, 0.7])),
}


def coefficients(schedule, times):
  """Returns alpha and sigma in float64; at t = 0 those of the clean image."""
  times = jnp.asarray(times, jnp.float32)
  alpha, sigma = (
    np.asarray(f(times), np.float64) for f in (schedule.alpha, schedule.sigma)
  )
  clean = np.asarray(times) == 0
  return np.where(clean, 1.0, alpha), np.where(clean, 0.0, sigma)


def discrete_std(schedule, times):
  """The std of a discrete consistency model of N(MU, STD^2).

  It is STD times the correlation of x_s and x_t for each step of the grid.
  """
  alpha, sigma = coefficients(schedule, times)
  variance = alpha**2 * STD**2 + sigma**2
  together = alpha[1:] * alpha[:-1] * STD**2 + sigma[1:] * sigma[:-1]
  return STD * np.prod(together / np.sqrt(variance[1:] * variance[:-1]))


def quantile_map(x, alpha, sigma):
  """Maps x_t of MODES to the x0 on its trajectory, by equal quantiles."""
  means = np.asarray(MODES["means"], np.float64).ravel()
  std = np.asarray(MODES["std"], np.float64)
  share = np.exp(np.asarray(MODES["logits"], np.float64))

  def below(x, alpha, sigma):
    z = (x[:, None] - alpha * means) / np.hypot(alpha * std, sigma)
    return (share * 0.5 * np.vectorize(math.erfc)(-z / 2**0.5)).sum(1)

  aim = below(np.asarray(x, np.float64), alpha, sigma)
  low, high = np.full(len(x), -4.0), np.full(len(x), 4.0)
  for _ in range(60):
    middle = (low + high) / 2
    less = below(middle, 1.0, 0.0) < aim
    low, high = np.where(less, middle, low), np.where(less, high, middle)
  return (low + high) / 2


@dataclasses.dataclass(frozen=True)
class Lines(OneTime):
  """A network that outputs a line in x for each of the times after the first.

  The line is a x / |(alpha, sigma)| + b, and the weights are (a, b).
  """

  schedule: object
  times: tuple

  def init(self, key):
    return jnp.zeros((len(self.times) - 1, 2))

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    times = jnp.array(self.times[1:])
    index = jnp.argmin(jnp.abs(t[:, None] - times[None]), axis=1)
    a, b = (column.reshape(-1, 1, 1, 1) for column in params[index].T)
    return a * x / self.length(t) + b

  def length(self, t):
    alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
    return jnp.hypot(alpha, sigma).reshape(-1, 1, 1, 1)


@dataclasses.dataclass(frozen=True)
class Teacher(OneTime):
  """The student's network for weights of its own, and else the exact one."""

  student: object
  exact: GaussianMixture

  @property
  def init(self):
    return self.student.init

  def apply(self, params, *args, **kwargs):
    network = self.exact if isinstance(params, dict) else self.student
    return network.apply(params, *args, **kwargs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Each(Neighbours):
  """Every step of a list of times, for the same number of rows."""

  times: tuple
  rows: int = 8

  def __call__(self, key, batch_size, schedule, progress):
    times = jnp.repeat(jnp.array(self.times), self.rows)
    return times[self.rows :], times[: -self.rows]

  def noisiest(self, schedule):
    return jnp.float32(1.0)


def grid(neighbours, schedule, num_steps):
  """The times of a grid of this many steps, from 0 on."""
  u = jnp.arange(num_steps + 1) / num_steps
  return tuple(np.asarray(neighbours.time(u, schedule)).tolist())


def denoiser_of(network, schedule):
  return Denoiser(
    network=Teacher(network, GaussianMixture(schedule=schedule)),
    process=GaussianProcess(schedule=schedule),
    precondition=Identity(noise="time"),
  )


def signs(num_steps):
  """The 8 combinations of three signs, once for each step of a grid.

  With x0 = MU + STD sign, the first and second moments of (x0, eps, another
  eps) are those of the normal distribution. A loss that is quadratic depends on
  no other moments.
  """
  sign = np.array([[i & 1, i >> 1 & 1, i >> 2] for i in range(8)]) * 2.0 - 1
  rows = np.tile(sign, (num_steps, 1)).astype(np.float32)
  return tuple(column.reshape(-1, 1, 1, 1) for column in rows.T)


def slope_of(goal, monkeypatch, **now):
  """Makes the gradient of a loss by the student's weights, without chance.

  The loss must be quadratic, and its network linear in the weights.
  """
  x0, eps, _ = signs(len(goal.neighbours.times) - 1)
  monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.array(eps))
  batch = batch_of(MU + STD * jnp.array(x0))

  def loss(params):
    trees = {"teacher": GAUSSIAN, "student": params}
    return loss_of(goal, trees, batch, jax.random.key(0), **now)[0]

  return jax.grad(loss)


def fixed_point(goal, monkeypatch, **now):
  """Solves for the weights at which the gradient of the student is 0."""
  zero = goal.denoiser.network.init(None)
  # The gradient is linear in the weights. Its derivative would not go through
  # stop_gradient, so take differences.
  units = jnp.eye(zero.size).reshape(-1, *zero.shape)
  slope = jax.jit(jax.vmap(slope_of(goal, monkeypatch, **now)))
  found = slope(jnp.concatenate([zero[None], units]))
  found = np.asarray(found, np.float64).reshape(-1, zero.size)
  rest, rates = found[0], (found[1:] - found[0]).T
  scale = np.abs(rates).max(1)
  solved = np.linalg.solve(rates / scale[:, None], -rest / scale)
  return solved.reshape(zero.shape)


def reached(goal, params):
  """The mean and the std of the images that one step makes of x_1."""
  schedule, times = goal.denoiser.process.schedule, goal.neighbours.times
  alpha, sigma = coefficients(schedule, times[-1:])
  a, b = params[-1]
  length = np.hypot(alpha, sigma)[0]
  mean = a * alpha[0] * MU / length + b
  return mean, a * np.hypot(alpha[0] * STD, sigma[0]) / length
