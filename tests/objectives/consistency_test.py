"""Tests consistency models against closed forms of a Gaussian and two modes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.arrays import UNCONDITIONAL
from diffdistill.diffusion.neighbours import (
  EvenNeighbours,
  GridNeighbours,
  Neighbours,
  RatioNeighbours,
)
from diffdistill.diffusion.prediction import Prediction
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.timesteps import Lognormal
from diffdistill.objectives.consistency import (
  ConsistencyDistillation,
  ConsistencyTraining,
)
from diffdistill.sampling.ddim import DDIM
from diffdistill.sampling.renoising import Renoising
from tests.objectives import trajectories
from tests.objectives.given import OneTime, batch_of, loss_of
from tests.objectives.trajectories import (
  MODES,
  MU,
  SCHEDULES,
  STD,
  Each,
  Lines,
  denoiser_of,
  discrete_std,
  fixed_point,
  grid,
  reached,
  signs,
  slope_of,
)

every_schedule = pytest.mark.parametrize("name", SCHEDULES)


def goal_of(kind, name, times=None, num_steps=8, **fields):
  """Makes an objective whose loss is quadratic, on a grid of few steps."""
  schedule = SCHEDULES[name]
  times = times or grid(GridNeighbours(), schedule, num_steps)
  denoiser = denoiser_of(Lines(schedule, times), schedule)
  # With a huber of 100, the loss differs by 1e-4 from a quadratic one.
  return kind(
    denoiser=denoiser,
    sampler=Renoising(process=denoiser.process, grid="karras", clip=False),
    neighbours=Each(times=times),
    **{"huber": 100.0, **fields},
  )


@pytest.mark.parametrize(
  ("kind", "num_steps", "name"),
  [
    *(("training", 8, name) for name in SCHEDULES),
    *(("distillation", 8, name) for name in SCHEDULES),
    ("training", 128, "preserving"),
  ],
)
def test_the_fixed_point_on_a_grid_is_the_closed_form(
  kind, num_steps, name, monkeypatch
):
  """A DDIM step of a Gaussian teacher is the regression of x_s on x_t."""
  if kind == "training":
    goal = goal_of(ConsistencyTraining, name, num_steps=num_steps)
  else:
    goal = goal_of(
      ConsistencyDistillation, name, num_steps=num_steps, solver="ddim"
    )
  expected = discrete_std(SCHEDULES[name], goal.neighbours.times)
  mean, std = reached(goal, fixed_point(goal, monkeypatch))
  # The errors are those of float32 and of the huber: 1.6e-5 at most.
  assert mean == pytest.approx(MU, abs=3e-5)
  assert std == pytest.approx(expected, abs=3e-5)
  # The bias is in 1 / N and shrinks the variance.
  assert 0.3 < 8 / num_steps * 0.1 / (STD - expected) < 3


def test_without_stopped_gradient_the_fixed_point_is_another(monkeypatch):
  errors = []
  for wrong in (False, True):
    goal = goal_of(ConsistencyTraining, "exploding")
    with monkeypatch.context() as patch:
      if wrong:
        patch.setattr(jax.lax, "stop_gradient", lambda x: x)
      _, std = reached(goal, fixed_point(goal, patch))
    expected = discrete_std(SCHEDULES["exploding"], goal.neighbours.times)
    errors.append(abs(std - expected))
  assert errors[1] > 5 * errors[0]
  assert errors[1] > 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fresh(ConsistencyTraining):
  """Consistency training with other noise at s than at t, which is wrong."""

  def _earlier(self, trees, condition, x_t, clean, t, s, key, now):
    _, _, other = signs(len(self.neighbours.times) - 1)
    clean = Prediction(x0=clean.x0, eps=jnp.array(other))
    return self.denoiser.process.arrive(clean, s)


def test_with_fresh_noise_at_s_the_images_are_only_the_mean(monkeypatch):
  goal = goal_of(Fresh, "exploding")
  mean, std = reached(goal, fixed_point(goal, monkeypatch))
  assert mean == pytest.approx(MU, abs=1e-3)
  assert abs(std) < 1e-3


def test_a_step_of_heun_has_less_bias_than_one_of_ddim(monkeypatch):
  bias = {}
  for solver in ("ddim", "heun"):
    goal = goal_of(
      ConsistencyDistillation, "exploding", num_steps=64, solver=solver
    )
    _, std = reached(goal, fixed_point(goal, monkeypatch))
    bias[solver] = abs(std - STD)
  assert bias["heun"] < bias["ddim"] / 5


@every_schedule
def test_the_gradient_beside_the_optimum_is_that_of_the_moments(
  name, monkeypatch
):
  goal = goal_of(ConsistencyTraining, name)
  times, schedule = goal.neighbours.times, SCHEDULES[name]
  params = np.random.default_rng(0).normal(size=(8, 2))
  slope = jax.jit(slope_of(goal, monkeypatch))
  found = slope(jnp.asarray(params, jnp.float32))
  alpha, sigma = trajectories.coefficients(schedule, times)
  length = np.hypot(alpha, sigma)
  # The target of the first step is x_s itself, the line 1 x + 0.
  a, b = np.concatenate([[[1.0, 0.0]], params]).T
  a = a / length
  gap = np.diff(np.append(0, sigma[1:] / alpha[1:]))
  expected = np.zeros_like(params)
  for j in range(8):
    t, s = j + 1, j
    mean_t, mean_s = alpha[t] * MU, alpha[s] * MU
    square = mean_t**2 + alpha[t] ** 2 * STD**2 + sigma[t] ** 2
    product = mean_t * mean_s + alpha[t] * alpha[s] * STD**2
    product += sigma[t] * sigma[s]
    # E[error] and E[error x_t], for error = a_t x_t + b_t - a_s x_s - b_s.
    one = a[t] * mean_t + b[t] - a[s] * mean_s - b[s]
    by_x = a[t] * square + (b[t] - b[s]) * mean_t - a[s] * product
    # The loss of a row is error^2 / (2 c gap), and its mean is over 8 steps.
    expected[j] = np.array([by_x / length[t], one]) / (8 * 100 * gap[j])
  np.testing.assert_allclose(found, expected, rtol=3e-3, atol=1e-6)
  with monkeypatch.context() as patch:
    patch.setattr(jax.lax, "stop_gradient", lambda x: x)
    wrong = slope_of(goal, patch)(jnp.asarray(params, jnp.float32))
  assert np.abs(wrong - expected).max() > 5 * np.abs(found - expected).max()


def test_stages_of_shrinking_gaps_remove_the_bias_of_ect(monkeypatch):
  schedule, found = SCHEDULES["exploding"], []
  ratios = RatioNeighbours(stages=4)
  for stage in (0, 3):
    times = [jnp.ones(1)]
    while times[-1] > 0:
      progress = jnp.float32(stage / 4)
      times.append(ratios.earlier(times[-1], schedule, progress))
    times = tuple(float(t[0]) for t in reversed(times))
    goal = goal_of(ConsistencyTraining, "exploding", times)
    _, std = reached(goal, fixed_point(goal, monkeypatch))
    assert std == pytest.approx(discrete_std(schedule, times), abs=2e-4)
    found.append(STD - std)
  assert found[0] > 5 * found[1] > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class At(Neighbours):
  """One pair of times (t, s), which may be traced, for all rows."""

  pair: tuple

  def __call__(self, key, batch_size, schedule, progress):
    return tuple(jnp.full(batch_size, time) for time in self.pair)

  def noisiest(self, schedule):
    return jnp.float32(1.0)


KNOTS = jnp.linspace(-4.0, 4.0, 1025)


@dataclasses.dataclass(frozen=True)
class Broken(Lines):
  """A network that is piecewise linear in x for each time after the first."""

  def init(self, key):
    # At first the output is x / |(alpha, sigma)|.
    return jnp.tile(KNOTS, (len(self.times) - 1, 1))

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    times = jnp.array(self.times[1:])
    index = jnp.argmin(jnp.abs(t[:, None] - times[None]), axis=1)
    at = (x / self.length(t)).ravel()
    return jax.vmap(lambda at, row: jnp.interp(at, KNOTS, row))(
      at, params[index]
    ).reshape(x.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Still(ConsistencyDistillation):
  """Distillation without the step of the teacher, which is wrong."""

  def _earlier(self, trees, condition, x_t, clean, t, s, key, now):
    return x_t


def test_distillation_of_two_modes_reaches_the_quantile_map(monkeypatch):
  schedule, num_steps = SCHEDULES["exploding"], 16
  times = grid(GridNeighbours(), schedule, num_steps)
  network = Broken(schedule, times)
  denoiser = denoiser_of(network, schedule)
  sampler = Renoising(process=denoiser.process, grid="karras", clip=False)

  def solve(kind, patch):
    """Solves one time after the other, from the cleanest on."""

    def one(params, j):
      s, t = jnp.array(times)[j], jnp.array(times)[j + 1]
      goal = kind(
        denoiser=denoiser,
        sampler=sampler,
        neighbours=At(pair=(t, s)),
        huber=1000.0,
      )
      # The noise puts one image on each knot.
      length, sigma = network.length(t[None]), schedule.sigma(t)
      noise = length * KNOTS.reshape(-1, 1, 1, 1) / sigma
      patch.setattr(jax.random, "normal", lambda key, shape: noise)
      batch = batch_of(jnp.zeros_like(noise))

      def loss(row):
        trees = {"teacher": MODES, "student": params.at[j].set(row)}
        return loss_of(goal, trees, batch, jax.random.key(0))[0]

      # The loss is quadratic, and each knot has its own term. So one step of
      # Newton's method solves it.
      slope, row = jax.grad(loss), params[j]
      rate = slope(row + 1) - slope(row)
      return params.at[j].add(-slope(row) / rate), None

    return jax.lax.scan(one, network.init(None), jnp.arange(num_steps))[0]

  z = np.random.default_rng(0).normal(size=(2048, 1, 1, 1))
  x = sampler.start(jnp.asarray(z, jnp.float32), 1)
  alpha, sigma = trajectories.coefficients(schedule, times[-1:])
  truth = trajectories.quantile_map(np.ravel(x), alpha[0], sigma[0])

  def error(kind):
    with monkeypatch.context() as patch:
      model = denoiser.bind(jax.jit(lambda: solve(kind, patch))())
    images = sampler(model, x, jax.random.key(0), 1)
    return np.sqrt(np.mean((np.ravel(images) - truth) ** 2))

  right = error(ConsistencyDistillation)
  # A trained perceptron had the error 0.023, so 1.5 times this is the bound.
  assert right < 0.035
  assert error(Still) > 5 * right


@dataclasses.dataclass(frozen=True)
class Recorder(OneTime):
  """A network that outputs its weight, and records the times of its calls."""

  heard: list

  def init(self, key):
    return jnp.float32(0.0)

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    self.heard.append((t, key))
    return 0 * x + params


@pytest.mark.parametrize("name", SCHEDULES)
def test_at_the_clean_end_the_target_is_the_image_itself(name):
  """The network is not asked at s = 0, so every network has the boundary."""
  heard, schedule = [], SCHEDULES[name]
  process = GaussianProcess(schedule=schedule)
  denoiser = dataclasses.replace(
    denoiser_of(Recorder(heard), schedule), network=Recorder(heard)
  )
  goal = ConsistencyTraining(
    denoiser=denoiser,
    sampler=Renoising(process=process, grid="karras"),
    neighbours=Each(times=grid(GridNeighbours(), schedule, 1), rows=4),
    huber=0.0,
    weighting="constant",
    dropout=True,
  )
  batch = batch_of(jnp.full((4, 1, 1, 1), 0.25))
  trees = {"student": jnp.float32(1.0)}
  loss, _ = loss_of(goal, trees, batch, jax.random.key(0))
  assert float(loss) == pytest.approx(0.75, rel=1e-6)
  # Student and target have the same key of dropout.
  (_, key), (_, other) = heard
  assert key is other
  assert key is not None


def test_the_target_is_the_average_if_it_has_a_decay():
  goal = goal_of(ConsistencyTraining, "flow", target_decay=0.5)
  assert dict(goal.trees["student"].averages) == {"target": 0.5}
  trees = {"student": jnp.zeros((8, 2)), "student/target": jnp.ones((8, 2))}
  batch = batch_of(jnp.zeros((64, 1, 1, 1)))
  slopes = jax.grad(
    lambda trees: loss_of(goal, trees, batch, jax.random.key(0))[0]
  )(trees)
  assert np.abs(slopes["student"]).max() > 0
  np.testing.assert_array_equal(slopes["student/target"], 0)


def test_a_student_from_scratch_needs_no_teacher():
  goal = goal_of(ConsistencyTraining, "flow", from_teacher=False)
  assert goal.starts == ()
  assert goal.trees["student"].start == ""
  assert goal_of(ConsistencyTraining, "flow").starts == ("teacher",)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"solver": "rk4"}, r"solver is 'rk4'; pass one of ddim, heun"),
    ({"weighting": "flat"}, r"weighting is 'flat'; pass one of constant"),
    ({"huber": -1.0}, r"huber is -1\.0; pass 0 or more"),
  ],
)
def test_a_wrong_field_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    goal_of(ConsistencyDistillation, "flow", **fields)


def test_a_sampler_that_the_student_is_not_trained_for_is_refused():
  goal = goal_of(ConsistencyTraining, "preserving")
  process = goal.denoiser.process
  with pytest.raises(ValueError, match="made for renoising, not DDIM; pass"):
    dataclasses.replace(goal, sampler=DDIM(process=process))
  early = Renoising(process=process)
  for neighbours in (
    GridNeighbours(),
    RatioNeighbours(draw=Lognormal(mean=-1.1, std=1.0)),
  ):
    with pytest.raises(ValueError, match=r"begins at t = 1, but the student"):
      dataclasses.replace(goal, sampler=early, neighbours=neighbours)
  uniform = EvenNeighbours(curve="uniform")
  dataclasses.replace(goal, sampler=early, neighbours=uniform)
