"""Exact flow maps, and networks of two times that are linear in their weights.

The data is one-dimensional: N(MEAN, STD^2), or the two modes of MODES. The rows
of a batch are points of a lattice that fills a cube evenly, so that a mean over
rows is nearly an integral. The weights at which the gradient of a loss is 0 are
solved for, which takes less time than training.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr, ndtri

from diffdistill.arrays import UNCONDITIONAL
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.precondition import Identity
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import Cosine
from diffdistill.networks.analytic import GaussianMixture
from diffdistill.sampling.flow_map import FlowMap
from tests.objectives.given import batch_of, loss_of

SCHEDULE = Cosine()
MEAN, STD = 0.7, 0.5


def mixture(shares, means, stds):
  """The weights of a `GaussianMixture`."""
  return {
    "means": jnp.array(means).reshape(-1, 1, 1, 1),
    "std": jnp.array(stds),
    "logits": jnp.log(jnp.array(shares)),
  }


GAUSSIAN = mixture([1.0], [MEAN], [STD])
MODES = mixture([0.3, 0.7], [-1.0, 0.8], [0.15, 0.3])


def coefficients(t):
  """The values of alpha and sigma at each time, in float64."""
  t = jnp.asarray(t, jnp.float32)
  return tuple(
    np.asarray(f(t), np.float64) for f in (SCHEDULE.alpha, SCHEDULE.sigma)
  )


def below(data, x, t):
  """The share of x_t below each x; t is one time, or one for each x."""
  alpha, sigma = (np.reshape(f, (-1, 1)) for f in coefficients(t))
  means, std, shares = (
    np.asarray(values, np.float64).ravel()
    for values in (data["means"], data["std"], jnp.exp(data["logits"]))
  )
  spread = np.hypot(alpha * std, sigma)
  return (shares * ndtr((x[:, None] - alpha * means) / spread)).sum(1)


def quantile(data, share, t=0.0):
  """The values of x_t with these shares below them, by bisection."""
  low, high = np.full(len(share), -8.0), np.full(len(share), 8.0)
  for _ in range(50):
    middle = (low + high) / 2
    less = below(data, middle, t) < share
    low, high = np.where(less, middle, low), np.where(less, high, middle)
  return (low + high) / 2


@functools.cache
def lattice(rows, dim):
  """Points of an additive lattice in the unit cube, a column for each axis."""
  root = 2.0
  for _ in range(50):
    root = (1 + root) ** (1 / (dim + 1))
  steps = root ** -np.arange(1.0, dim + 1)
  return tuple(((0.5 + np.outer(np.arange(1, rows + 1), steps)) % 1).T)


@dataclasses.dataclass(frozen=True)
class Linear:
  """Features of x and of its times, times the weights; the output is v.

  For weights of a mixture it outputs the exact v, and ignores s.

  Args:
    times: the times that the features depend on, a part of "ts".
    count: the number of random tanh features; for 0 the features are 1 and x,
      times the powers of the times up to the fifth.
    separate: whether there are separate weights for s = t.
  """

  times: str = "ts"
  count: int = 150
  separate: bool = False
  sharpness: float = 8.0
  seed: int = 1
  two_times = True

  def init(self, key):
    x = jnp.zeros((1, 1, 1, 1))
    size = self.features(x, jnp.zeros(1), jnp.zeros(1)).shape[1]
    return jnp.zeros((1 + self.separate, size))

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    if isinstance(params, dict):
      x0 = GaussianMixture(schedule=SCHEDULE).apply(params, x, t)
      alpha, sigma = GaussianProcess(schedule=SCHEDULE).coefficients(t, x)
      return (alpha * x - x0) / sigma
    s = t if s is None else s
    out = self.features(x, t, s) @ params.T
    if self.separate:
      return jnp.where(s < t, out[:, 0], out[:, 1]).reshape(x.shape)
    return out.reshape(x.shape)

  def features(self, x, t, s):
    times = jnp.stack([{"t": t, "s": s}[name] for name in self.times], axis=1)
    one, x = jnp.ones_like(t)[:, None], x.reshape(-1, 1)
    if not self.count:
      powers = one
      for index in range(len(self.times)):
        column = times[:, index]
        raised = jnp.stack([column**power for power in range(6)], axis=1)
        powers = (powers[:, :, None] * raised[:, None]).reshape(len(t), -1)
      return jnp.concatenate([powers, powers * x], axis=1)
    random, dim = np.random.default_rng(self.seed), len(self.times)
    scale = np.array([[self.sharpness], [3.0], [3.0]])[: 1 + dim]
    w = scale * random.normal(size=(1 + dim, self.count))
    centre = np.concatenate(
      [
        random.uniform(-1.5, 1.5, (1, self.count)),
        random.uniform(0, 1, (dim, self.count)),
      ]
    )
    shift = (w * centre).sum(0, keepdims=True)
    w, shift = (jnp.asarray(value, x.dtype) for value in (w, shift))
    inputs = jnp.concatenate([x, times], axis=1)
    h = jnp.tanh(inputs @ w - shift)
    return jnp.concatenate([h, one, inputs, x * times], axis=1)


def denoiser_of(network):
  return Denoiser(
    network=network,
    process=GaussianProcess(schedule=SCHEDULE),
    output="v",
    precondition=Identity(noise="time"),
  )


def sampler_of():
  return FlowMap(process=GaussianProcess(schedule=SCHEDULE), clip=False)


def fix_draws(monkeypatch, module, t, s, eps):
  """Replaces the draws of times, by a module's draw_pair, and of noise."""
  t, s, eps = (jnp.asarray(value, jnp.float32) for value in (t, s, eps))
  monkeypatch.setattr(module, "draw_pair", lambda *_, **__: (t, s))
  eps = eps.reshape(-1, 1, 1, 1)
  monkeypatch.setattr(jax.random, "normal", lambda *_, **__: eps)


def as_batch(image):
  return batch_of(jnp.asarray(image, jnp.float32).reshape(-1, 1, 1, 1))


def along_flow(monkeypatch, module, data, t, s, share):
  """Makes a batch whose x_t have these shares below them, and fixes t and s.

  The x0 of each row is the end of its own trajectory, so its eps is of a usual
  size. Only objectives that learn from a teacher give the same result as for
  random x0 and eps.
  """
  alpha, sigma = coefficients(t)
  image = quantile(data, share)
  eps = (quantile(data, share, t) - alpha * image) / sigma
  fix_draws(monkeypatch, module, t, s, eps)
  return as_batch(image)


def at_random(monkeypatch, module, data, t, s, share_x0, share_eps):
  """Makes a batch of independent x0 and eps, and fixes t and s."""
  fix_draws(monkeypatch, module, t, s, ndtri(share_eps))
  return as_batch(quantile(data, share_x0))


def add_knobs(monkeypatch):
  """Makes factors of one term of each identity; 1 is the right form.

  "derivative" multiplies the derivative, "x" multiplies x in the Eulerian and
  Lagrangian identities, and "moved" multiplies the length of a semigroup's
  first jump.
  """
  knobs = {}
  jvp, to_circle = jax.jvp, GaussianProcess.to_circle
  rotate = GaussianProcess.rotate

  def scaled_jvp(*arguments):
    value, rate = jvp(*arguments)
    return value, knobs["derivative"] * rate

  def scaled_x(self, x_t, t):
    x, angle = to_circle(self, x_t, t)
    return knobs["x"] * x, angle

  def part_of_jump(self, x_t, *rest):
    return x_t + knobs["moved"] * (rotate(self, x_t, *rest) - x_t)

  monkeypatch.setattr(jax, "jvp", scaled_jvp)
  monkeypatch.setattr(GaussianProcess, "to_circle", scaled_x)
  monkeypatch.setattr(GaussianProcess, "rotate", part_of_jump)
  return knobs


RIGHT = {"derivative": 1.0, "x": 1.0, "moved": 1.0}


def solver(
  goal,
  batch,
  teacher,
  *,
  linear,
  rounds=1,
  knobs=None,
  more=None,
  **now,
):
  """Makes a function that solves for weights whose gradient is 0.

  Args:
    goal: the objective.
    batch: the rows.
    teacher: the mixture of the teacher.
    linear: whether to divide the gradient by its whole slope (Newton's method,
      exact in one round if the target is linear in the weights), and not only
      by its slope for a fixed target. The second is the limit of many updates
      for each target.
    rounds: the number of rounds.
    knobs: a dict that the patched functions of a test read. The numbers in it
      are traced, so one compilation serves the right and the wrong forms.
    more: trees that the loss needs too.
    now: the place of the update, see `now_of`.

  Returns:
    The function, which takes the knobs by name and returns the weights.
  """
  params, knobs = (
    goal.denoiser.network.init(None),
    {} if knobs is None else knobs,
  )

  def loss(flat, given):
    knobs.update(given)
    student = flat.reshape(params.shape)
    trees = {"teacher": teacher, "student": student, **(more or {})}
    return loss_of(goal, trees, batch, jax.random.key(0), **now)[0]

  slope = jax.jit(jax.grad(loss))

  @jax.jit
  def slopes(flat, given):
    if not linear:
      return jax.jacfwd(slope)(flat, given)
    steps = jnp.eye(flat.size)
    ahead = jax.vmap(lambda step: slope(flat + step, given))(steps)
    return (ahead - slope(flat, given)[None]).T

  def solve(**given):
    given = {name: jnp.float32(value) for name, value in given.items()}
    flat = params.ravel()
    for index in range(rounds):
      if linear or not index:
        rates = np.asarray(slopes(flat, given), np.float64)
        rates += 1e-6 * np.abs(rates).max() * np.eye(flat.size)
      move = np.linalg.solve(rates, np.asarray(slope(flat, given), np.float64))
      flat = flat - jnp.asarray(move, jnp.float32)
    return flat.reshape(params.shape)

  return solve


def error(goal, params, data, sampler=None):
  """The root mean square of the error of one jump from noise to image."""
  sampler = sampler or goal.sampler
  share = (np.arange(1000) + 0.5) / 1000
  noise = quantile(data, share, float(sampler.time(1, 1)))
  x = jnp.asarray(noise, jnp.float32).reshape(-1, 1, 1, 1)
  image = sampler(goal.denoiser.bind(params), x, jax.random.key(0), 1).ravel()
  return np.sqrt(np.mean((image - quantile(data, share)) ** 2))
