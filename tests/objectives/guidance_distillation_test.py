"""Tests that a student that is told w learns the guided denoiser of every w.

The data has two classes, which are normal distributions in one dimension, so
the denoiser with a class, the one without, and their guided combination are
formulas.
"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import norm

from diffdistill.arrays import UNCONDITIONAL, Condition
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.precondition import Identity
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import Cosine
from diffdistill.diffusion.timesteps import Uniform
from diffdistill.networks.analytic import GaussianMixture
from diffdistill.objectives import guidance_distillation, progressive
from diffdistill.objectives.guidance_distillation import GuidanceDistillation
from diffdistill.objectives.progressive import Progressive
from diffdistill.sampling.ddim import DDIM
from diffdistill.sampling.flow_map import FlowMap
from tests.objectives.given import OneTime, batch_of, loss_of
from tests.objectives.maps_given import mixture

SCHEDULE = Cosine()
PROCESS = GaussianProcess(schedule=SCHEDULE)
MEANS, STDS, NULL = np.array([-1.0, 0.8]), np.array([0.3, 0.5]), 2
CLASSES = mixture([0.5, 0.5], MEANS, STDS)
TIME, TOLD = 0.4, (0.0, 4.0)
COUNT = 16  # the random features of a student
RIGHT = {"more": 0.0, "null": NULL, "time": TIME}


@dataclasses.dataclass(frozen=True)
class TwoClasses(OneTime):
  """The exact denoiser of a class, or features of x and w times the weights.

  A student has its own weights for each class, and for each power of w up to
  its square. The teacher is the mixture CLASSES.
  """

  told_guidance = True

  def init(self, key):
    return jnp.zeros((2, 3, COUNT + 2))

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    label, w = condition.label, condition.guidance
    if isinstance(params, dict):
      # A class that is not the label has a share of almost 0.
      alone = -200.0 * (label[:, None] == 1 - jnp.arange(2)[None])
      return jax.vmap(self.exact, (None, 0, 0, 0))(params, x, t, alone)
    powers = jnp.stack([jnp.ones_like(w), w / TOLD[1], (w / TOLD[1]) ** 2], 1)
    rows = jnp.sum(params[label] * powers[:, :, None], axis=1)
    return jnp.sum(rows * features(x.ravel()), axis=1).reshape(x.shape)

  def exact(self, params, x, t, alone):
    params = {**params, "logits": params["logits"] + alone}
    return GaussianMixture(schedule=SCHEDULE).apply(params, x[None], t[None])[0]


def features(x):
  random = np.random.default_rng(0)
  slope = jnp.asarray(random.uniform(1, 4, COUNT), jnp.float32)
  shift = jnp.asarray(random.uniform(-2, 2, COUNT), jnp.float32)
  steps = jnp.tanh(slope[None] * (x[:, None] - shift[None]))
  return jnp.concatenate([steps, x[:, None], jnp.ones_like(x)[:, None]], axis=1)


def denoiser_of(network=None, null=NULL):
  return Denoiser(
    network=network or TwoClasses(),
    process=PROCESS,
    precondition=Identity(noise="time"),
    conditional=True,
    null_label=null,
  )


def goal_of(**fields):
  guidance = Guidance(interval=(0.3, 1.0))
  given = {"denoiser": denoiser_of(), "told": TOLD, "guidance": guidance}
  sampler = DDIM(process=PROCESS)
  return GuidanceDistillation(**{"sampler": sampler, **given, **fields})


def coefficients():
  t = jnp.float32(TIME)
  return tuple(float(f(t)) for f in (SCHEDULE.alpha, SCHEDULE.sigma))


def exact(x, label, w):
  """The guided denoiser by formulas, in float64."""
  alpha, sigma = coefficients()
  spread = np.hypot(alpha * STDS, sigma)
  x0 = MEANS + alpha * STDS**2 / spread**2 * (x[:, None] - alpha * MEANS)
  share = norm.pdf(x[:, None], alpha * MEANS, spread)
  without = (share * x0).sum(1) / share.sum(1)
  return x0[:, label] + w * (x0[:, label] - without)


@pytest.fixture(scope="module")
def gradient():
  """gradient(student, **knobs) gives the gradients of student and teacher.

  It is compiled once, for all values of the knobs. "more" is added to the w of
  the teacher; 1 makes w the paper's 1 + w, the factor of the class. "null" is
  the label of the pass without a class, and "time" is every t.
  """
  alpha, sigma = coefficients()
  # Every pair of one of 128 equally likely x_t and one of 16 weights.
  z, w = np.meshgrid(ndtri((np.arange(128) + 0.5) / 128), np.arange(16) + 0.5)
  w = jnp.asarray(np.tile(TOLD[1] * w.ravel() / 16, 2), jnp.float32)
  label, z = np.repeat([0, 1], z.size), np.tile(z.ravel(), 2)
  # These x0 and eps have the sum x_t = alpha mean + spread z.
  z = z / np.hypot(alpha * STDS[label], sigma)
  image, eps = (
    jnp.asarray(values, jnp.float32).reshape(-1, 1, 1, 1)
    for values in (MEANS[label] + alpha * STDS[label] ** 2 * z, sigma * z)
  )
  batch, bind = batch_of(image, jnp.asarray(label)), Denoiser.bind
  knobs = types.SimpleNamespace()

  def more(self, *arguments, scale=1.0, **fields):
    return bind(self, *arguments, scale=scale + knobs.more, **fields)

  def loss(trees, given):
    vars(knobs).update(given)
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(guidance_distillation, "draw_weights", lambda *_: w)
      patch.setattr(jax.random, "normal", lambda *_, **__: eps)
      patch.setattr(Denoiser, "bind", more)
      patch.setattr(Denoiser, "check_guidance", lambda *_: knobs.null)
      patch.setattr(
        Uniform, "quantile", lambda self, u, _: jnp.full_like(u, knobs.time)
      )
      return loss_of(goal_of(), trees, batch, jax.random.key(0))[0]

  compiled = jax.jit(jax.grad(loss))

  def run(student, **given):
    student = jnp.asarray(student, jnp.float32).reshape(2, 3, COUNT + 2)
    trees = {"teacher": CLASSES, "student": student}
    found = compiled(trees, {**RIGHT, **given})
    return np.asarray(found["student"], np.float64).ravel(), found["teacher"]

  return run


def error_of(student):
  """The RMS error of a student at three w, each with both classes."""
  alpha, sigma = coefficients()
  share = (np.arange(200) + 0.5) / 200
  xs, expected, labels, ws = [], [], [], []
  for w in (0.5, 2.0, 3.5):
    for label in (0, 1):
      spread = np.hypot(alpha * STDS[label], sigma)
      xs.append(alpha * MEANS[label] + spread * ndtri(share))
      expected.append(exact(xs[-1], label, w))
      labels.append(np.full(200, label))
      ws.append(np.full(200, w))
  x, label, w = (jnp.asarray(np.concatenate(rows)) for rows in (xs, labels, ws))
  told = Condition(label=label, guidance=w)
  params = jnp.asarray(student, jnp.float32).reshape(2, 3, -1)
  found = jax.jit(denoiser_of())(
    params, x.reshape(-1, 1, 1, 1), jnp.full_like(x, TIME), told
  )
  wrong = np.reshape(found.x0, (3, -1)) - np.reshape(expected, (3, -1))
  return np.sqrt(np.mean(wrong**2, axis=1))


def test_the_student_is_the_guided_denoiser_at_three_weights(gradient):
  # The loss is quadratic and the student linear, so differences solve it.
  units = np.eye(6 * (COUNT + 2))
  start = gradient(0 * units[0])[0]
  slopes = np.array([gradient(unit)[0] - start for unit in units])
  slopes += 1e-5 * np.abs(slopes).max() * units

  def error(**knobs):
    return error_of(
      np.linalg.solve(slopes, -gradient(0 * units[0], **knobs)[0])
    )

  right = error().max()
  assert right < 0.01
  # The pass without a class is given the class 0 or 1, or the w is 1 + w.
  for knobs in ({"null": 0}, {"null": 1}, {"more": 1.0}):
    assert (error(**knobs) > 5 * right).all(), knobs


def test_the_gradient_of_another_student_is_that_of_a_quadrature(gradient):
  params = 0.3 * np.random.default_rng(1).normal(size=(2, 3, COUNT + 2))
  alpha, sigma = coefficients()
  nodes, shares = np.polynomial.hermite_e.hermegauss(60)
  shares /= shares.sum()
  at, parts = np.polynomial.legendre.leggauss(6)
  weights = TOLD[0] + (TOLD[1] - TOLD[0]) * (at + 1) / 2
  expected = np.zeros(params.shape)
  for label in (0, 1):
    x = alpha * MEANS[label] + np.hypot(alpha * STDS[label], sigma) * nodes
    waves = np.asarray(features(jnp.asarray(x, jnp.float32)), np.float64)
    for w, part in zip(weights, parts, strict=True):
      powers = (w / TOLD[1]) ** np.arange(3)
      residual = waves @ (powers @ params[label]) - exact(x, label, w)
      # The share of a class is 1/2, and that of a w is part/2.
      slope = 2 * (shares * residual) @ waves / 2 * part / 2
      expected[label] += powers[:, None] * slope
  # The weighting is max(SNR, 1), and here the SNR is larger than 1.
  expected = (alpha / sigma) ** 2 * expected.ravel()

  def error(**knobs):
    found, of_teacher = gradient(params, **knobs)
    for leaf in jax.tree.leaves(of_teacher):
      np.testing.assert_array_equal(leaf, 0)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)

  right = error()
  assert right < 0.0015
  for knobs in ({"null": 0}, {"null": 1}, {"more": 1.0}):
    assert error(**knobs) > 5 * right, knobs


def test_outside_the_interval_of_times_the_student_learns_no_guidance(gradient):
  student = np.ones(6 * (COUNT + 2))
  for time, same in ((0.4, False), (0.2, True)):
    found, other = (gradient(student, time=time, more=m)[0] for m in (0.0, 1.0))
    assert np.allclose(found, other, rtol=1e-5) == same


class Scaled(OneTime):
  """A network that multiplies x by a number of its class, guided if told w."""

  told_guidance = True

  def init(self, key):
    return jnp.zeros(3)

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    w = 0 if condition.guidance is None else condition.guidance
    scale = params[condition.label]
    scale = scale + w * (scale - params[NULL])
    return scale[:, None, None, None] * x


def test_halving_tells_both_networks_the_same_weight(monkeypatch):
  """At one w, it equals the halving of a teacher that is guided with this w."""
  image = jax.random.normal(jax.random.key(2), (64, 1, 1, 2))
  batch, w = batch_of(image, jnp.arange(64) % 2), 1.5
  teacher = jnp.array([0.3, 0.6, 0.5])
  student = jnp.array([0.2, 0.7, 0.4])

  def loss(student, guided, **fields):
    goal = Progressive(
      denoiser=denoiser_of(Scaled()), sampler=DDIM(process=PROCESS), **fields
    )
    trees = {"teacher": teacher, "student": student}
    key = jax.random.key(0)
    return float(loss_of(goal, trees, batch, key, guided=guided)[0])

  asked = []

  def one_weight(key, count, told):
    asked.append(told)
    return jnp.full(count, w)

  monkeypatch.setattr(progressive, "draw_weights", one_weight)
  # A teacher that is told its w is not guided too.
  found = loss(student, 1.0, told=TOLD, guidance=Guidance(weight=3.0))
  assert asked == [TOLD]
  as_told = student + w * (student - student[NULL])
  expected = loss(as_told, 1.0, guidance=Guidance(weight=w))
  assert found == pytest.approx(expected, rel=1e-4)
  # Both networks are told w: with one of them untold the loss is another one.
  for other in (loss(student, 1.0, guidance=Guidance(weight=w)),
                loss(as_told, 0.0)):  # fmt: skip
    assert abs(other / expected - 1) > 0.05


def test_weights_are_drawn_from_the_whole_range():
  w = guidance_distillation.draw_weights(jax.random.key(0), 1000, (1.0, 3.0))
  assert w.shape == (1000,)
  np.testing.assert_allclose([w.min(), w.mean(), w.max()], [1, 2, 3], atol=0.05)


def test_a_range_or_a_model_that_cannot_be_told_is_refused():
  network = GaussianMixture(schedule=SCHEDULE)
  deaf = denoiser_of(network)
  for fields, text in (
    ({"told": (4.0, 0.0)}, r"told is \(4.0, 0.0\); pass the lowest and the"),
    ({"told": ()}, r"told is \(\); pass the lowest"),
    ({"told": (0.0, 2000.0)}, "told is .*; pass 0 or more, at most 1000"),
    ({"denoiser": deaf}, "reads no guidance weight; pass model.network.told_"),
    (
      {"denoiser": denoiser_of(null=None)},
      "was not trained without its labels",
    ),
    ({"sampler": FlowMap(process=PROCESS)}, "the sampler is flow_map, but a"),
  ):
    with pytest.raises(ValueError, match=text) as refusal:
      dataclasses.replace(goal_of(), **fields)
    assert "\n" not in str(refusal.value)
  sampler = DDIM(process=PROCESS)
  with pytest.raises(ValueError, match="reads no guidance weight"):
    Progressive(denoiser=deaf, sampler=sampler, told=TOLD)
