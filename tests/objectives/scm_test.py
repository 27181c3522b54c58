"""sCM in one dimension, against closed forms.

The bounds are 1.5 times the errors of a perceptron that was trained by sCM. The
tangent is not normalised, because that biases data of one dimension, and makes
the gradient nonlinear in the weights. Each wrong form is at least five times
worse than the right one.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.diffusion.learned_weight import LearnedWeight
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.timesteps import TimeDraw
from diffdistill.objectives import flow_map, scm
from diffdistill.objectives.scm import (
  ContinuousDistillation,
  ContinuousTraining,
  normalised,
)
from diffdistill.sampling.ddim import DDIM
from diffdistill.sampling.one_step import OneStep
from tests.objectives.maps_given import (
  GAUSSIAN,
  MEAN,
  MODES,
  RIGHT,
  SCHEDULE,
  STD,
  Linear,
  add_knobs,
  along_flow,
  at_random,
  coefficients,
  denoiser_of,
  error,
  lattice,
  solver,
)

KINDS = {"teacher": ContinuousDistillation, "data": ContinuousTraining}
BOUNDS = {
  "gaussian": {"teacher": 0.0093, "data": 0.0105},
  "modes": {"teacher": 0.045, "data": 0.105},
}
FIRST = 0.9  # sigma/alpha is 6.3 there
WEIGHTING = {"weighting": LearnedWeight().init(jax.random.key(0))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(TimeDraw):
  """Times that are given, not drawn."""

  times: tuple = ()

  def __call__(self, key, batch_size, schedule):
    return jnp.array(self.times, jnp.float32)

  def quantile(self, u, schedule):
    raise NotImplementedError

  def share(self, t, schedule):
    raise NotImplementedError


class Balanced(LearnedWeight):
  """A weighting of noise levels that makes the weight of (4) 1 / cos(d)."""

  def apply(self, params, logsnr):
    # tau is tan(d), so log cos(d) is -log(1 + tau^2) / 2.
    return 0.5 * logsnr - 0.5 * jnp.log1p(jnp.exp(-logsnr))


def problem(monkeypatch, source, data, rows, count=0, **fields):
  """A goal and its rows, with all times for tanh features.

  Without them, more times are near t = 1, where g is small, and times below
  0.02 are left out: the noise of data at such times has a large weight, 1/tau.
  """
  *shares, u = lattice(rows, 2 if source == "teacher" else 3)
  t = u if count else 1 - 0.98 * (1 - u) ** 2
  goal = KINDS[source](
    denoiser=denoiser_of(Linear(times="t", count=count)),
    sampler=OneStep(
      process=GaussianProcess(schedule=SCHEDULE), first_time=FIRST, clip=False
    ),
    draw=Given(times=tuple(t.tolist())),
    floor=0.0,
    **fields,
  )
  rows_of = along_flow if source == "teacher" else at_random
  # Only the noise is fixed here; no module draws pairs of times.
  return goal, rows_of(monkeypatch, flow_map, data, t, 0 * t, *shares)


@pytest.mark.parametrize("source", KINDS)
def test_scm_reaches_the_consistency_function_of_a_gaussian(
  source, monkeypatch
):
  rows = 400 if source == "teacher" else 16000
  goal, batch = problem(monkeypatch, source, GAUSSIAN, rows, warmup=10)
  given = {"linear": True, "knobs": add_knobs(monkeypatch), "more": WEIGHTING}
  solve = solver(goal, batch, GAUSSIAN, **given, guided=0, step=10)
  right, *wrong = (
    solve(**{**RIGHT, **change})
    for change in ({}, {"derivative": -1.0}, {"x": 0.0})
  )
  first = solver(goal, batch, GAUSSIAN, **given, guided=0, step=0)(**RIGHT)
  monkeypatch.undo()
  found = error(goal, right, GAUSSIAN)
  assert found < BOUNDS["gaussian"][source]
  for params in wrong:
    assert not error(goal, params, GAUSSIAN) < 5 * found
  # At the beginning of the warm-up, the student is a denoiser.
  t = jnp.full(3, 0.5)
  x = jnp.array([-1.0, 0.0, 2.0]).reshape(3, 1, 1, 1)
  alpha, sigma = (float(f[0]) for f in coefficients(t))
  away = np.asarray(x) - alpha * MEAN
  exact = MEAN + alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2) * away
  denoised = goal.denoiser.bind(first)(x, t).x0
  # The powers of t fit the denoiser to 0.03. The consistency function differs
  # from it by up to 0.5 at these points.
  np.testing.assert_allclose(denoised, exact, atol=0.05)


@pytest.mark.parametrize("source", KINDS)
def test_scm_reaches_the_quantile_map_of_two_modes(source, monkeypatch):
  rows, count = (5000, 150) if source == "teacher" else (8000, 100)
  # The optimum does not depend on the weighting. The usual one hardly weighs
  # times near t = 1, where this map has a steep edge.
  monkeypatch.setattr(scm, "WEIGHTING", Balanced())
  goal, batch = problem(monkeypatch, source, MODES, rows, count, warmup=0)
  solve = solver(goal, batch, MODES, linear=True, more=WEIGHTING, guided=0)
  params = solve()
  monkeypatch.undo()
  found, bound = error(goal, params, MODES), BOUNDS["modes"][source]
  assert found < bound
  # The teacher's prediction is only the mean of the data.
  assert error(goal, MODES, MODES) > 5 * bound


def test_the_learned_weight_is_zero_at_first_and_follows_the_error():
  weight = LearnedWeight()
  params, logsnr = weight.init(jax.random.key(0)), jnp.linspace(-20.0, 20.0, 7)
  np.testing.assert_array_equal(weight.apply(params, logsnr), 0.0)
  # If every level has the error 4, the optimum is log 4 at every level.
  best = {"cosines": params["cosines"].at[0].set(np.log(4.0))}

  def loss(params):
    lv = weight.apply(params, logsnr)
    return jnp.mean(4 * jnp.exp(-lv) + lv)

  gradient = jax.jit(jax.grad(loss))
  np.testing.assert_allclose(gradient(best)["cosines"], 0.0, atol=1e-6)
  assert abs(float(gradient(params)["cosines"][0]) + 3) < 1e-6


def test_a_normalised_tangent_has_a_norm_below_1_and_no_nan_at_0():
  g = jnp.zeros((2, 2, 2, 1)).at[1].set(5.0)
  size = np.sqrt(np.sum(np.square(normalised(g, 0.1)), axis=(1, 2, 3)))
  np.testing.assert_allclose(size, [0.0, 10 / 10.1], rtol=1e-6)
  assert normalised(g, 0.0) is g


def test_a_sampler_that_follows_the_flow_is_refused():
  with pytest.raises(
    ValueError, match=r"not DDIM; pass sampler\.kind=renoising"
  ):
    ContinuousTraining(
      denoiser=denoiser_of(Linear()),
      sampler=DDIM(process=GaussianProcess(schedule=SCHEDULE)),
    )
