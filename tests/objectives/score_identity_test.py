"""Gradients and optima of SiD against formulas for Gaussian distributions.

The data are N(MEAN, STD^2), with the exact denoiser as the teacher. The student
makes x = a + b z, which is N(a, b^2), and its critic is exact. With tau =
sigma/alpha, k = STD^2 / (STD^2 + tau^2), f = b^2 / (b^2 + tau^2) and the slack
c, the loss has the gradients

  dL/da = (1 - k) (MEAN - a) ((1 - 2 c) (k - f) + k - 1)
  dL/db = 2 b (k - f) (k - 1 - c (k - f))
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.precondition import Identity
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import Cosine
from diffdistill.diffusion.timesteps import TimeDraw
from diffdistill.networks.analytic import GaussianMixture
from diffdistill.objectives import score_identity
from diffdistill.objectives.score_identity import ScoreIdentity
from diffdistill.sampling.ddim import DDIM
from diffdistill.sampling.one_step import OneStep
from tests.objectives.given import batch_of, loss_of
from tests.objectives.moment_given import Blend, blend

MEAN, STD = 0.7, 0.5
IMAGES = jnp.zeros((20_000, 1, 1, 4))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fixed(TimeDraw):
  """Draws one time always."""

  t: float

  def quantile(self, u, schedule):
    return jnp.full_like(u, self.t)

  def share(self, t, schedule):
    return t


def goal_of(s=0.4, **fields):
  process = GaussianProcess(schedule=Cosine())
  return ScoreIdentity(
    denoiser=Denoiser(
      network=Blend(GaussianMixture(schedule=Cosine())),
      process=process,
      precondition=Identity(noise="time"),
    ),
    sampler=OneStep(process=process, clip=False),
    draw=Fixed(t=s),
    critic_draw=Fixed(t=s),
    **{"normalise": False, **fields},
  )


def exact(mean, std):
  """The denoiser of N(mean, std^2)."""
  return blend(
    0.0,
    0.0,
    (
      1.0,
      {
        "means": jnp.broadcast_to(jnp.asarray(mean), (1, 1, 1, 4)),
        "std": jnp.asarray(std)[None],
        "logits": jnp.zeros(1),
      },
    ),
  )


def student_gradient(goal, a, b, key):
  """The gradient in (a, b) of the student's loss, with its exact critic."""
  trees = {"teacher": exact(MEAN, STD), "critic": exact(a, jnp.abs(b))}

  def loss(a, b):
    student = blend(slope=b, shift=a)
    turn = ("student",)
    return loss_of(
      goal, {**trees, "student": student}, batch_of(IMAGES), key, turn
    )[0]

  return jax.grad(loss, argnums=(0, 1))(a, b)


def formula(a, b, tau, slack):
  k, f = (v / (v + tau**2) for v in (STD**2, b**2))
  return (
    (1 - k) * (MEAN - a) * ((1 - 2 * slack) * (k - f) + k - 1),
    2 * b * (k - f) * (k - 1 - slack * (k - f)),
  )


def errors(goal, s, slack):
  """The largest error of the gradient at some points that are no optimum."""
  tau = float(Cosine().tau(jnp.float32(s)))
  run = jax.jit(lambda a, b: student_gradient(goal, a, b, jax.random.key(0)))
  found = []
  for a, b in ((0.4, 0.8), (-0.5, 1.2), (1.0, 0.3)):
    made = run(jnp.float32(a), jnp.float32(b))
    found.append(np.abs(np.subtract(made, formula(a, b, tau, slack))))
  return float(np.max(found))


@pytest.mark.parametrize("slack", [0.0, 1.0, 1.2])
@pytest.mark.parametrize("s", [0.3, 0.6])
def test_the_gradient_agrees_with_the_formula_away_from_the_optimum(s, slack):
  assert errors(goal_of(s, slack=slack), s, slack) < 0.02


def test_a_stopped_gradient_at_delta_is_seen_in_the_gradient(monkeypatch):
  right = errors(goal_of(0.6), 0.6, 1.0)

  def stopped(x, teacher, critic, slack):
    delta = jax.lax.stop_gradient(teacher - critic)
    return jnp.mean(delta * (teacher - x - slack * delta), axis=(1, 2, 3))

  monkeypatch.setattr(score_identity, "identity_loss", stopped)
  assert errors(goal_of(0.6), 0.6, 1.0) > 5 * right


def test_the_identity_holds_for_an_exact_critic():
  """E |teacher - critic|^2 = E delta . (teacher - x), equation (1)."""
  trees = {
    "teacher": exact(MEAN, STD),
    "critic": exact(0.2, jnp.float32(0.9)),
    "student": blend(slope=0.9, shift=0.2),
  }
  goal = goal_of(0.5, slack=0.0)
  run = jax.jit(
    lambda key: loss_of(goal, trees, batch_of(IMAGES), key, ("student",))
  )
  loss, metrics = run(jax.random.key(1))
  total, count = metrics["student/score_gap"]
  assert float(loss) == pytest.approx(float(total / count), rel=0.02)


def descended(slack, a, b, updates=600, rate=0.5):
  """(a, b) after gradient descent with a critic that is always exact."""
  goal = goal_of(0.7, slack=slack)

  def update(state, key):
    gradient = student_gradient(goal, *state, key)
    return jax.tree.map(lambda p, g: p - rate * g, state, gradient), None

  keys = jax.random.split(jax.random.key(2), updates)
  start = jnp.float32(a), jnp.float32(b)
  (a, b), _ = jax.jit(lambda s: jax.lax.scan(update, s, keys))(start)
  return float(a), float(jnp.abs(b))


@pytest.mark.parametrize("slack", [1.0, 1.2])
def test_a_student_near_the_teacher_reaches_it(monkeypatch, slack):
  monkeypatch.setattr(f"{__name__}.IMAGES", IMAGES[:500])
  a, b = descended(slack, -0.5, 1.2)
  assert a == pytest.approx(MEAN, abs=0.01)
  assert b == pytest.approx(STD, abs=0.01)


def test_the_slack_of_the_paper_diverges_beyond_its_bound(monkeypatch):
  """v + tau^2 > 6 (v* + tau^2) pushes away for 1.2, and never for 1."""
  monkeypatch.setattr(f"{__name__}.IMAGES", IMAGES[:500])
  tau = float(Cosine().tau(jnp.float32(0.7)))
  edge = (6 * (STD**2 + tau**2) - tau**2) ** 0.5
  _, inside = descended(1.2, MEAN, 0.9 * edge, updates=200)
  _, beyond = descended(1.2, MEAN, 1.1 * edge, updates=200)
  _, safe = descended(1.0, MEAN, 1.1 * edge, updates=200)
  assert inside < 0.9 * edge
  assert beyond > 1.1 * edge
  assert safe < 1.1 * edge


def test_the_critic_learns_the_mean_of_the_image():
  """Its loss is least at the exact denoiser of the student's images."""
  goal = goal_of(0.5, weighting="constant")
  trees = {
    "teacher": exact(MEAN, STD),
    "student": blend(slope=0.9, shift=0.2),
  }

  def loss(mean, std):
    critic = exact(mean, std)
    return loss_of(
      goal,
      {**trees, "critic": critic},
      batch_of(IMAGES),
      jax.random.key(3),
      ("critic",),
    )[0]

  gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
  at = np.abs(gradient(jnp.float32(0.2), jnp.float32(0.9)))
  off = np.abs(gradient(jnp.float32(0.4), jnp.float32(0.7)))
  assert at.max() < 0.02
  assert off.min() > 5 * at.max()


def test_another_sampler_is_refused():
  goal = goal_of()
  with pytest.raises(
    ValueError, match="made for one_step of form x0, not DDIM"
  ):
    dataclasses.replace(goal, sampler=DDIM(process=goal.denoiser.process))
