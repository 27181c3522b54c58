import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.arrays import UNCONDITIONAL
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.precondition import Identity
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import Cosine, RectifiedFlow
from diffdistill.networks.analytic import GaussianMixture
from diffdistill.networks.mlp import MLP
from diffdistill.networks.network import LinenNetwork
from diffdistill.objectives import moment_matching
from diffdistill.objectives.moment_matching import (
  TIMES,
  Draw,
  MomentMatching,
  ParameterMomentMatching,
  draw,
  draw_times,
  moment_loss,
  moments,
  precondition,
)
from diffdistill.objectives.objective import Objective, turn_of
from diffdistill.sampling.ancestral import Ancestral
from diffdistill.sampling.ddim import DDIM
from tests.objectives.given import (
  MIXTURE,
  OneTime,
  batch_of,
  check_copies,
  check_devices_change_nothing,
)
from tests.objectives.given import loss_of as loss_of_trees

KINDS = (MomentMatching, ParameterMomentMatching)


def gaussian(std):
  """x0 ~ N(2, std^2)."""
  return {
    "means": jnp.full((1, 1, 1, 1), 2.0),
    "std": jnp.array([std]),
    "logits": jnp.zeros(1),
  }


@dataclasses.dataclass(frozen=True)
class Blend(OneTime):
  """params["slope"] x + params["shift"] + a sum of exact denoisers."""

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
  """A network that drops half of its input and writes down what it is asked.

  Its output is params[label] times what is left.
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
  """A constant image per label."""

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


def loss_of(
  goal, name, trees, image, key, num_steps=4, guided=1, label=None, **frozen
):
  """trees: the student's, the auxiliary's (or None) and the teacher's."""
  named = zip(("student", "auxiliary", "teacher"), trees, strict=True)
  return loss_of_trees(
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
    return loss_of(goal, "student", (student, *trees[1:]), image, key, **fields)

  return jax.value_and_grad(loss, has_aux=True)(trees[0])


def mean_of(metric):
  total, count = metric
  return float(total / count)


def calls_of(kind, name, seed=0, label=None, model=None, **fields):
  """What the network is asked in one loss of six rows, in order."""
  heard = []
  goal = objective(kind, Listener(heard), model=model, **fields)
  trees = (jnp.full(3, 0.5),) * 3

  @jax.jit
  def run(x0, key):
    heard.clear()
    loss_of(goal, name, trees, x0, key, label=label)
    return list(heard)

  return run(images(6), jax.random.key(seed))


def images(n, seed=0, data=MIXTURE):
  return GaussianMixture(schedule=Cosine()).sample(
    data, jax.random.key(seed), n
  )


# Times.


@pytest.mark.parametrize("num_steps", [1, 2, 3, 8, 1000])
@pytest.mark.parametrize("times", TIMES)
def test_times_are_at_most_one_step_apart(times, num_steps):
  n = 2**14
  run = jax.jit(draw_times, static_argnums=(0, 2))
  key = jax.random.key(num_steps)
  t, s = map(np.asarray, run(times, key, n, jnp.int32(num_steps)))
  assert s.min() >= 0
  assert t.max() == 1
  assert np.all(s <= t)
  # Two float32 times below 1 are rounded by 6e-8 each.
  assert np.max(t - s) <= 1 / num_steps + 1.2e-7
  inner = (t - s)[s < 1 - 1 / num_steps] if times == "continuous" else t - s
  if inner.size:
    # Uniform: four standard errors of its mean and of its mean square.
    error = 4 / np.sqrt(inner.size)
    u = inner.astype(np.float64) * num_steps
    assert np.mean(u) == pytest.approx(1 / 2, abs=error / 12**0.5)
    assert np.mean(u**2) == pytest.approx(1 / 3, abs=error * (4 / 45) ** 0.5)
  # One of them is uniform on the whole of time.
  whole = s if times == "continuous" else t - 0.5 / num_steps
  assert np.mean(whole) == pytest.approx(0.5, abs=4 / np.sqrt(12 * n))
  if times == "grid":
    i = np.round(t * num_steps)
    assert i.min() == 1
    np.testing.assert_array_equal(t, i / np.float32(num_steps))


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()])
def test_the_ends_of_time_are_finite(monkeypatch, schedule):
  """s = 0, where x_s is x0 itself, s = t, where it is x_t, and both."""
  t, s = jnp.array([0.25, 1.0, 0.5, 0.0]), jnp.array([0.0, 1.0, 0.5, 0.0])
  monkeypatch.setattr(
    moment_matching, "draw_times", lambda mode, key, n, k: (t[:n], s[:n])
  )
  exact = GaussianMixture(schedule=schedule)
  student = MIXTURE | {"std": jnp.array([0.4, 0.1])}
  for kind, rows in ((MomentMatching, 4), (ParameterMomentMatching, 8)):
    goal = objective(kind, exact, schedule)
    trees = (student, student, MIXTURE)
    (loss, metrics), grad = compiled_gradient(
      goal, trees, images(rows), jax.random.key(0)
    )
    assert loss != 0
    for leaf in jax.tree.leaves((loss, metrics, grad)):
      assert np.all(np.isfinite(leaf))
  goal = objective(MomentMatching, exact, schedule)
  drawn = jax.jit(
    lambda batch, key: draw(
      goal.denoiser, student, batch, "grid", "snr", 4, key, False
    )
  )(batch_of(images(4)), jax.random.key(0))
  x0, x_s = np.asarray(drawn.x0), np.asarray(drawn.x_s)
  np.testing.assert_array_equal(x_s[[0, 3]], x0[[0, 3]])
  assert not np.any(np.isclose(x_s[[1, 2]], x0[[1, 2]]))


# Constants: what the losses are.


def test_losses_of_constants():
  """Student c, auxiliary a, teacher b."""
  a, b, c = 0.4, -0.3, 1.5
  network = Blend(GaussianMixture(schedule=Cosine()))
  goal = objective(MomentMatching, network, weighting="constant")
  trees = blend(shift=c), blend(shift=a), blend(shift=b)
  key = jax.random.key(0)
  x0 = images(8)
  loss, metrics = jax.jit(
    lambda trees: loss_of(goal, "auxiliary", trees, x0, key)
  )(trees)
  assert set(metrics) == {"auxiliary/loss"}
  expected = (c - a) ** 2 + (b - a) ** 2
  assert float(loss) == pytest.approx(expected, rel=1e-5)
  assert mean_of(metrics["auxiliary/loss"]) == pytest.approx(expected, rel=1e-5)
  (loss, metrics), gradient = compiled_gradient(goal, trees, x0, key)
  assert float(loss) == pytest.approx(c * (a - b), rel=1e-5)
  assert float(gradient["shift"]) == pytest.approx(a - b, rel=1e-5)
  assert mean_of(metrics["student/loss"]) == pytest.approx(float(loss))
  gap = mean_of(metrics["student/moment_gap"])
  assert gap == pytest.approx(2 * (c - b) * (a - b), rel=1e-5)
  assert set(metrics) == {"student/loss", "student/moment_gap"}

  @jax.jit
  @jax.grad
  def gradient_at(a):
    trees = blend(shift=c), blend(shift=a), blend(shift=b)
    return loss_of(goal, "auxiliary", trees, x0, key)[0]

  # Towards the midpoint of student and teacher.
  assert float(gradient_at((b + c) / 2)) == pytest.approx(0, abs=1e-6)
  assert float(gradient_at(a)) == pytest.approx(2 * (2 * a - b - c), rel=1e-5)


@pytest.mark.parametrize("guided", [0, 1])
def test_the_teacher_is_guided_and_nothing_else_is(guided):
  """Constants per label: told p1, untold p0, guided g = p1 + w (p1 - p0)."""
  p0, p1, c, a, w = 0.3, -0.4, 1.5, 0.2, 2.0 * guided
  model = {"conditional": True, "null_label": 0}
  fields = {"weighting": "constant", "guidance": Guidance(weight=2.0)}
  trees = tuple(jnp.array(v) for v in ([9, c, 9], [9, a, 9], [p0, p1, 9.0]))
  label = jnp.ones(8, jnp.int32)
  g = p1 + w * (p1 - p0)
  expected = {
    MomentMatching: (c * (a - g), 2 * (c - g) * (a - g)),
    # m is (2 w (c - g), -2 (1 + w) (c - g)) in p0 and p1.
    ParameterMomentMatching: tuple(
      4 * (c - g) * ((1 + w) ** 2 + w**2) * factor for factor in (c, c - g)
    ),
  }
  for kind, (loss, gap) in expected.items():
    (actual, metrics), gradient = compiled_gradient(
      objective(kind, Table(), model=model, **fields),
      trees,
      images(8),
      jax.random.key(0),
      guided=guided,
      label=label,
    )
    assert float(actual) == pytest.approx(loss, rel=1e-5)
    actual = mean_of(metrics["student/moment_gap"])
    assert actual == pytest.approx(gap, rel=1e-5)
    np.testing.assert_allclose(gradient, [0, loss / c, 0], rtol=1e-5)


# Gradients.


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_through_x_s(kind):
  """x0 is linear in the student here, and so is the loss at given x_s.

  Then params . gradient = loss, unless the gradient leaks.
  """
  goal = objective(kind, Blend(GaussianMixture(schedule=Cosine())))
  other = MIXTURE | {"std": jnp.array([0.5, 0.4])}
  trees = (
    blend(0.7, 0.2),
    blend(0.0, 0.0, (0.5, MIXTURE), (0.5, other)),
    blend(0.0, 0.0, (1.0, MIXTURE)),
  )
  (loss, _), gradient = compiled_gradient(
    goal, trees, images(64), jax.random.key(3)
  )
  products = jax.tree.map(lambda p, g: p * g, trees[0], gradient)
  slope, shift = float(products["slope"]), float(products["shift"])
  assert min(abs(slope), abs(shift)) > 0.01 * abs(float(loss)) > 0
  assert slope + shift == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize("dropout", [False, True])
def test_no_gradient_where_the_auxiliary_is_the_teacher(dropout):
  goal = objective(MomentMatching, Listener([]), dropout=dropout)
  student, teacher = jnp.full(3, 0.4), jnp.full(3, 0.7)
  trees = student, teacher, teacher
  (loss, metrics), gradient = compiled_gradient(
    goal, trees, images(64), jax.random.key(0)
  )
  assert float(loss) == 0
  assert mean_of(metrics["student/moment_gap"]) == 0
  np.testing.assert_array_equal(gradient, 0)
  trees = student, 1.1 * teacher, teacher
  _, gradient = compiled_gradient(goal, trees, images(64), jax.random.key(0))
  assert gradient[0] != 0


def same(*keys):
  data = [jax.random.key_data(key) for key in keys]
  return all(np.array_equal(d, data[0]) for d in data)


@pytest.mark.parametrize("kind", KINDS)
def test_without_dropout_nobody_gets_a_key(kind):
  assert all(call["key"] is None for call in calls_of(kind, "student"))


@pytest.mark.parametrize("name", ["auxiliary", "student"])
def test_auxiliary_and_teacher_drop_the_same_units(name):
  student, teacher, auxiliary = (
    call["key"] for call in calls_of(MomentMatching, name, dropout=True)
  )
  assert same(teacher, auxiliary)
  assert not same(student, teacher)
  later = calls_of(MomentMatching, name, seed=1, dropout=True)
  assert not same(later[0]["key"], student)
  assert not same(later[1]["key"], teacher)


def test_in_parameter_space_every_call_has_its_own_key():
  calls = calls_of(ParameterMomentMatching, "student", dropout=True)
  keys = [call["key"] for call in calls]
  assert len(keys) == 4
  for i, key in enumerate(keys):
    assert not any(same(key, other) for other in keys[:i])


# Passes and halves.

LABEL = jnp.array([0, 1, 0, 1, 0, 2])


@pytest.mark.parametrize("name", ["auxiliary", "student"])
def test_passes_of_an_alternating_update(name):
  calls = calls_of(
    MomentMatching, name, label=LABEL, model={"conditional": True}
  )
  student, teacher, auxiliary = calls
  for call in calls:
    np.testing.assert_array_equal(call["label"], LABEL)
  for field in ("x", "t"):
    np.testing.assert_array_equal(teacher[field], auxiliary[field])
    assert np.all(student[field] != teacher[field])
  assert np.all(teacher["t"] < student["t"])
  goal = objective(MomentMatching, Listener([]))
  passes = goal.passes((name,), 4, False)
  # Three calls, one of them differentiated: 2 + 3.
  assert passes.forward + passes.gradient == len(calls)
  assert passes.units == 5


def test_halves_of_a_parameter_space_update():
  model = {"conditional": True}
  student, other_student, other_teacher, teacher = calls_of(
    ParameterMomentMatching, "student", label=LABEL, model=model
  )
  for call in (student, teacher):
    np.testing.assert_array_equal(call["label"], LABEL[0::2])
  for call in (other_student, other_teacher):
    np.testing.assert_array_equal(call["label"], LABEL[1::2])
  assert not np.any(student["t"] == other_student["t"])
  goal = objective(ParameterMomentMatching, Listener([]), model=model)
  one, key = jnp.full(3, 0.5), jax.random.key(0)
  (_, metrics), gradient = compiled_gradient(
    goal, (one, None, one), images(6), key, label=LABEL
  )
  # The second half says where to go but does not go.
  np.testing.assert_array_equal(gradient[1:], 0)
  for _, count in metrics.values():
    assert float(count) == 3
  # Per example of both halves: a forward pass, a gradient, a tangent and
  # another gradient, each in one half.
  assert goal.passes(("student",), 4, False).units == 0.5 * (1 + 3 + 3 + 3)
  with pytest.raises(ValueError, match="batch size is 3; pass an even one"):
    loss_of(goal, "student", (one, None, one), images(3), key)


# The parameter-space gradient.


def test_surrogate_is_the_finite_difference_of_half_m_lambda_m():
  """In float64, with one batch of given draws for both halves."""
  with jax.enable_x64(True):
    module = MLP(width=4, depth=1, out_channels=2)
    network = LinenNetwork(module=module, image_shape=(1, 1, 2))
    random = np.random.default_rng(0)
    # Not the network's own start: its last layer would be zero.
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    params, second = (
      jax.tree.map(lambda leaf, d=d: jnp.asarray(d(size=leaf.shape)), shapes)
      for d in (random.normal, random.exponential)
    )
    x0, x_s = (jnp.asarray(random.normal(size=(4, 1, 1, 2))) for _ in range(2))
    s, w = (jnp.asarray(random.uniform(size=4)) for _ in range(2))

    def half_m_lambda_m(x0):
      m = moments(network.apply, params, Draw(x0=x0, x_s=x_s, s=s, w=w))
      products = jax.tree.map(
        lambda m, lm: jnp.sum(m * lm), m, precondition(m, second)
      )
      return 0.5 * jax.tree.reduce(jnp.add, products)

    def surrogate(x0):
      drawn = Draw(x0=x0, x_s=x_s, s=s, w=w)
      direction = precondition(moments(network.apply, params, drawn), second)
      losses, gaps = moment_loss(network.apply, params, direction, drawn)
      return jnp.mean(losses), jnp.mean(gaps)

    gradient, gap = jax.jit(jax.grad(surrogate, has_aux=True))(x0)
    assert gradient.dtype == jnp.float64

    def difference(i):
      step = jnp.zeros(x0.size).at[i].set(1e-5).reshape(x0.shape)
      high, low = half_m_lambda_m(x0 + step), half_m_lambda_m(x0 - step)
      return (high - low) / 2e-5

    expected = jax.jit(jax.vmap(difference))(jnp.arange(x0.size))
    # 1/2 m^T Lambda m is quadratic in x0: only rounding is left.
    np.testing.assert_allclose(gradient.ravel(), expected, rtol=1e-6)
    # With one batch for both halves the gap is m^T Lambda m itself.
    half = float(jax.jit(half_m_lambda_m)(x0))
    assert float(gap) == pytest.approx(2 * half)


def test_lambda_is_one_over_the_root_of_the_second_moments():
  m, v = {"a": jnp.array([3.0, 1e-9])}, {"a": jnp.array([4.0, 0.0])}
  np.testing.assert_allclose(precondition(m, v)["a"], [1.5, 0.1], rtol=1e-6)
  assert precondition(m, None) is m
  exact = GaussianMixture(schedule=Cosine())
  goals = {
    name: objective(ParameterMomentMatching, exact, preconditioner=name)
    for name in ("adam", "identity")
  }
  assert goals["identity"].needs == {"teacher": "denoiser"}
  assert goals["adam"].needs == {
    "teacher": "denoiser",
    "second_moments": "moments",
  }
  student = MIXTURE | {"std": jnp.array([0.5, 0.4])}
  v = jax.tree.map(lambda p: jnp.full(p.shape, 4.0), MIXTURE)
  x0, key = images(64), jax.random.key(0)

  @jax.jit
  def losses(x0, key):
    args = ("student", (student, None, MIXTURE), x0, key)
    return (
      loss_of(goals["adam"], *args, second_moments=v)[0],
      loss_of(goals["identity"], *args)[0],
    )

  adam, identity = losses(x0, key)
  assert float(adam / identity) == pytest.approx(0.5, rel=1e-5)


# The moment gap.

WRONG = 0.3


def one_step_student():
  """x0 = 2 + WRONG x_1: normal like the data N(2, 0.5^2), but narrower."""
  return blend(WRONG, 2.0)


def test_the_gap_of_a_narrow_one_step_student():
  """With the best auxiliary the metric's mean is a formula.

  x_1 is almost pure noise, so x_s = alpha x0 + sigma eps, and E[x0 | x_s] is
  the exact denoiser of the narrower normal distribution.
  """
  schedule = Cosine(logsnr_max=8.0)
  network = Blend(GaussianMixture(schedule=schedule))
  goal = objective(
    MomentMatching, network, schedule, times="grid", weighting="snr"
  )
  teacher = blend(0.0, 0.0, (1.0, gaussian(0.5)))
  auxiliary = blend(0.0, 0.0, (0.5, gaussian(0.5)), (0.5, gaussian(WRONG)))
  n = 2**18
  _, metrics = jax.jit(
    lambda x0, key: loss_of(
      goal,
      "student",
      (one_step_student(), auxiliary, teacher),
      x0,
      key,
      num_steps=1,
    )
  )(images(n, data=gaussian(0.5)), jax.random.key(1))
  assert float(metrics["student/moment_gap"][1]) == n
  s = (jnp.arange(10_000) + 0.5) / 10_000
  alpha, sigma = schedule.alpha(s), schedule.sigma(s)

  def var(std):
    return alpha**2 * std**2 + sigma**2

  gains = alpha * WRONG**2 / var(WRONG) - alpha * 0.5**2 / var(0.5)
  expected = jnp.mean((alpha / sigma) ** 2 * gains**2 * var(WRONG))
  # One standard error is 0.5 %.
  actual = mean_of(metrics["student/moment_gap"])
  assert actual == pytest.approx(float(expected), rel=0.02)


def test_the_gap_in_parameter_space_is_that_of_the_mean_moments():
  """m^T m' of independent halves has no bias."""
  network = Blend(GaussianMixture(schedule=Cosine()))
  goal = objective(
    ParameterMomentMatching, network, times="grid", weighting="clipped_snr"
  )
  trees = one_step_student(), None, blend(0.0, 0.0, (1.0, gaussian(0.5)))

  @jax.jit
  def both(key):
    key_gaps, key_moments = jax.random.split(key)

    def gap(key):
      x0 = images(256, data=gaussian(0.5))
      _, metrics = loss_of(goal, "student", trees, x0, key, num_steps=1)
      return metrics["student/moment_gap"][0] / 128

    drawn = draw(
      goal.denoiser,
      trees[0],
      batch_of(images(2**19, data=gaussian(0.5))),
      "grid",
      "clipped_snr",
      1,
      key_moments,
      False,
    )

    def teacher(params, x_s, s):
      return goal.denoiser(params, x_s, s).x0

    m = moments(teacher, trees[2], drawn)
    gaps = jax.vmap(gap)(jax.random.split(key_gaps, 2048))
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(m)), jnp.mean(gaps)

  square, gap = map(float, both(jax.random.key(0)))
  # Each is known to 4 %. With one half for both m's own noise would be added,
  # and more than double it.
  assert gap == pytest.approx(square, rel=0.2)


def test_a_one_step_student_as_wide_as_the_data_has_no_gradient():
  """The fixed point, in parameter space, and the signs on both sides of it."""
  network = Blend(GaussianMixture(schedule=Cosine()))
  goal = objective(
    ParameterMomentMatching, network, times="grid", weighting="clipped_snr"
  )
  teacher = blend(0.0, 0.0, (1.0, gaussian(0.5)))

  @jax.jit
  def slopes(slope):
    def one(key):
      x0 = images(256, data=gaussian(0.5))
      trees = blend(slope, 2.0), None, teacher
      return student_gradient(goal, trees, x0, key, num_steps=1)[1]["slope"]

    return jax.vmap(one)(jax.random.split(jax.random.key(0), 256))

  def score(slope):
    """The mean gradient in units of its standard error."""
    values = np.asarray(slopes(slope))
    return values.mean() / (values.std() / 16)

  assert score(0.3) < -6
  assert score(0.8) > 6
  assert abs(score(0.5)) < 4


# What it says of itself.


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_trains_and_when(kind):
  goal = objective(kind, GaussianMixture(schedule=Cosine()))
  assert isinstance(goal, Objective)
  assert goal.rounds == "each"
  assert goal.consumes == "images"
  params = goal.init(jax.random.key(0), {"teacher": MIXTURE})
  assert tuple(params) == tuple(goal.trees)
  assert goal.product == "student"
  check_copies(params, MIXTURE)
  turns = [turn_of(goal, step) for step in range(4)]
  if kind is MomentMatching:
    assert turns == [("auxiliary",), ("student",)] * 2
  else:
    assert turns == [("student",)] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_same_loss_on_any_number_of_devices(kind):
  goal = objective(kind, GaussianMixture(schedule=Cosine()))
  other = MIXTURE | {"std": jnp.array([0.5, 0.4])}
  x0 = np.asarray(images(64))

  def losses(key, x0):
    trees = (other, other, MIXTURE)
    return jnp.stack(
      [loss_of(goal, name, trees, x0, key)[0] for name in goal.trees]
    )

  check_devices_change_nothing(losses, jax.random.key(5), x0, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_refusals(kind):
  exact = GaussianMixture(schedule=Cosine())
  goal = objective(kind, exact)
  with pytest.raises(ValueError, match="weighting is 'x'"):
    objective(kind, exact, weighting="x")
  with pytest.raises(ValueError, match="times is 'x'; pass one of continuous"):
    objective(kind, exact, times="x")
  with pytest.raises(ValueError, match="preconditioner is 'x'; pass one of"):
    objective(ParameterMomentMatching, exact, preconditioner="x")
  process = goal.denoiser.process
  for sampler in (
    DDIM(process=process),
    Ancestral(process=process, grid="karras"),
    Ancestral(process=process, noise=0.5),
    Ancestral(process=process, first_time=0.8),
  ):
    with pytest.raises(ValueError, match="made for ancestral sampling"):
      dataclasses.replace(goal, sampler=sampler)
