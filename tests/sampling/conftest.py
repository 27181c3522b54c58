"""Exact denoisers and probability flows, for tests of samplers' errors."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.precondition import Identity
from diffdistill.diffusion.prediction import Model
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.networks.analytic import GaussianMixture
from tests.diffusion.given import SCHEDULES


@dataclasses.dataclass(frozen=True)
class Toy:
  """A mixture of d-dimensional Gaussians with its process and denoiser."""

  process: GaussianProcess
  means: np.ndarray  # shape (k, d)
  std: np.ndarray  # shape (k,)
  logits: np.ndarray  # shape (k,)

  @property
  def denoise(self) -> Model:
    schedule = self.process.schedule
    denoiser = Denoiser(
      network=GaussianMixture(schedule=schedule),
      process=self.process,
      precondition=Identity(noise="time"),
    )
    params = {
      "means": jnp.asarray(self.means[:, None, None], jnp.float32),
      "std": jnp.asarray(self.std, jnp.float32),
      "logits": jnp.asarray(self.logits, jnp.float32),
    }
    return denoiser.bind(params)

  def coefficients(self, t):
    """alpha and sigma at time t, as Python floats."""
    schedule, t = self.process.schedule, jnp.float32(t)
    return float(schedule.alpha(t)), float(schedule.sigma(t))

  def noise(self, t, z):
    """A typical x_t of shape (n, 1, 1, d), from normal z of shape (n, d)."""
    alpha, sigma = self.coefficients(t)
    x = alpha * self.means.mean(0) + sigma * z
    return jnp.asarray(x[:, None, None], jnp.float32)

  def flow(self, x, t):
    """Follows the probability flow from x at time t to time 0; shape (n, d).

    One Gaussian has a closed form. A mixture needs Runge-Kutta in float64, with
    y = x / |(alpha, sigma)| and dy/dangle = cos(angle) eps - sin(angle) x0.
    """
    x = np.asarray(x, np.float64)[:, 0, 0]
    alpha, sigma = self.coefficients(t)
    if len(self.means) == 1:
      m, v = self.means[0], self.std[0] ** 2
      return m + (x - alpha * m) * np.sqrt(v / (alpha**2 * v + sigma**2))

    def slope(y, angle):
      x0 = self.clean(y, np.cos(angle), np.sin(angle))
      return (np.cos(angle) * y - x0) / np.sin(angle)

    y, last = x / np.hypot(alpha, sigma), 1e-4
    angles = np.linspace(np.arctan2(sigma, alpha), last, 2001)
    for angle, following in itertools.pairwise(angles):
      h = following - angle
      k1 = slope(y, angle)
      k2 = slope(y + h / 2 * k1, angle + h / 2)
      k3 = slope(y + h / 2 * k2, angle + h / 2)
      k4 = slope(y + h * k3, following)
      y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return self.clean(y, np.cos(last), np.sin(last))

  def clean(self, x, alpha, sigma):
    """E[x0 | x_t = x] in float64, by Bayes' rule."""
    variance = alpha**2 * self.std**2 + sigma**2
    difference = x[:, None] - alpha * self.means
    log_weight = (
      self.logits
      - 0.5 * x.shape[-1] * np.log(variance)
      - 0.5 * (difference**2).sum(-1) / variance
    )
    weight = np.exp(log_weight - log_weight.max(1, keepdims=True))
    weight /= weight.sum(1, keepdims=True)
    gain = (alpha * self.std**2 / variance)[:, None]
    return (weight[..., None] * (self.means + gain * difference)).sum(1)


@pytest.fixture
def toys():
  """A function that makes a Toy, by schedule and "gaussian" or "mixture"."""

  def make(name: str, data: str = "gaussian") -> Toy:
    process = GaussianProcess(schedule=SCHEDULES[name])
    if data == "gaussian":
      means, std, logits = [[0.4]], [0.3], [0.0]
    else:
      means = [[0.5, 0.3], [-0.6, 0.1], [0.1, -0.5]]
      std, logits = [0.3, 0.4, 0.35], [0.0, 0.5, -0.3]
    return Toy(process, *(np.array(v) for v in (means, std, logits)))

  return make


@pytest.fixture
def order():
  """Returns a function that fits a sampler's order of convergence.

  The function takes the errors for numbers of steps that double each time.
  """

  def fit(errors: list[float]) -> float:
    return -np.polyfit(np.arange(len(errors)), np.log2(errors), 1)[0]

  return fit
