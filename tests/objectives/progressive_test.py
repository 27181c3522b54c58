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
from diffdistill.diffusion.schedule import Cosine
from diffdistill.networks.analytic import GaussianMixture
from diffdistill.objectives import progressive
from diffdistill.objectives.progressive import Progressive
from diffdistill.sampling.ancestral import Ancestral
from diffdistill.sampling.ddim import DDIM
from tests.objectives.given import (
  MIXTURE,
  Listener,
  OneTime,
  batch_of,
  check_copies,
)
from tests.objectives.given import loss_of as loss_of_trees


def objective(network, schedule, **fields):
  process = GaussianProcess(schedule=schedule)
  fields = {"precondition": Identity(noise="time")} | fields
  return Progressive(
    denoiser=Denoiser(network=network, process=process, **fields),
    sampler=DDIM(process=process),
  )


def exact(schedule):
  return objective(GaussianMixture(schedule=schedule), schedule)


def loss_of(goal, student, teacher, x0, key, num_steps):
  trees = {"student": student, "teacher": teacher}
  return loss_of_trees(goal, trees, batch_of(x0), key, num_steps=num_steps)


def data(n, seed=0):
  network = GaussianMixture(schedule=Cosine())
  return network.sample(MIXTURE, jax.random.key(seed), n)


def test_times_are_on_the_grid_of_the_sampler_to_the_bit(monkeypatch):
  heard, ends = [], []
  goal = objective(Listener(heard), Cosine())
  weigh = progressive.second_weight

  def second_weight(process, t, mid, s):
    ends.append(s)
    return weigh(process, t, mid, s)

  monkeypatch.setattr(progressive, "second_weight", second_weight)

  @jax.jit
  def times(key, num_steps):
    heard.clear()
    ends.clear()
    one, x0 = jnp.ones(()), jnp.zeros((2048, 1, 1, 1))
    loss_of(goal, one, one, x0, key, num_steps)
    # In each loss, the network is called twice as the teacher, then once as the
    # student.
    return [call["t"] for call in heard], ends[0]

  for num_steps in (*(2**k for k in range(14)), 3, 5, 49, 100):
    (t, mid, student), s = jax.tree.map(
      np.asarray, times(jax.random.key(num_steps), num_steps)
    )
    np.testing.assert_array_equal(t, student)
    i, n = np.round(t * num_steps), np.float32(num_steps)
    assert i.min() >= 1
    assert i.max() <= num_steps
    # The times must be correctly rounded quotients: t and s lie on the
    # student's grid, and mid lies halfway between them.
    np.testing.assert_array_equal(t, i / n)
    np.testing.assert_array_equal(s, (i - 1) / n)
    np.testing.assert_array_equal(mid, (2 * i - 1) / (2 * n))
    np.testing.assert_array_equal(s == 0, i == 1)
    if num_steps <= 100:
      assert np.any(t == 1)
      assert np.any(s == 0)


def test_models_get_labels_but_no_key_and_no_s():
  heard = []
  goal = objective(Listener(heard), Cosine(), conditional=True)
  label, one = jnp.array([3, 1]), jnp.ones(())
  batch = batch_of(jnp.zeros((2, 1, 1, 1)), label)
  trees = {"student": one, "teacher": one}
  loss_of_trees(goal, trees, batch, jax.random.key(0))
  assert len(heard) == 3
  for call in heard:
    np.testing.assert_array_equal(call["label"], label)
    assert call["key"] is None
    assert call["s"] is None


@dataclasses.dataclass(frozen=True)
class Constant(OneTime):
  """A network that outputs one constant for each label."""

  def init(self, key):
    return jnp.zeros(2)

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    values = params[condition.label]
    return jnp.ones_like(x) * values[:, None, None, None]


@pytest.mark.parametrize("guided", [0, 1])
def test_the_first_teacher_is_guided_and_a_student_is_not(guided):
  goal = dataclasses.replace(
    objective(Constant(), Cosine(), conditional=True, null_label=1),
    guidance=Guidance(weight=2.0),
    weighting="constant",
  )
  told, untold, student = 0.3, -0.4, 0.1
  loss, _ = loss_of_trees(
    goal,
    {
      "student": jnp.array([student, 9.0]),
      "teacher": jnp.array([told, untold]),
    },
    batch_of(jnp.zeros((8, 1, 1, 1)), jnp.zeros(8, jnp.int32)),
    jax.random.key(0),
    guided=guided,
  )
  # Both predictions of the teacher are the same constant, so the target is this
  # constant too.
  target = told + 2 * guided * (told - untold)
  assert float(loss) == pytest.approx((target - student) ** 2, rel=1e-5)
  passes = goal.passes(("student",), 4, bool(guided))
  assert passes.forward == 2 * (1 + guided)


def test_metrics_are_sums_and_counts_of_the_loss():
  student = MIXTURE | {"std": jnp.array([0.5, 0.4])}

  @jax.jit
  def both(key):
    args = (student, MIXTURE, data(64), key, 4)
    truncated = exact(Cosine())
    constant = dataclasses.replace(truncated, weighting="constant")
    return loss_of(truncated, *args), loss_of(constant, *args)

  (loss, metrics), (plain, _) = both(jax.random.key(4))
  total, count = metrics["student/loss"]
  assert float(count) == 64
  assert float(total / count) == pytest.approx(float(loss), rel=1e-6)
  total, count = metrics["student/x0_mse"]
  assert float(total / count) == pytest.approx(float(plain), rel=1e-6)
  assert plain < loss


def test_the_student_starts_as_a_copy_of_the_teacher():
  params = exact(Cosine()).init(jax.random.key(0), {"teacher": MIXTURE})
  assert set(params) == {"student"}
  check_copies(params, MIXTURE)


def test_an_unknown_weighting_and_other_samplers_are_refused():
  process = GaussianProcess(schedule=Cosine())
  denoiser = exact(Cosine()).denoiser
  with pytest.raises(ValueError, match="weighting is 'x'"):
    Progressive(denoiser=denoiser, sampler=DDIM(process=process), weighting="x")
  for sampler in (
    Ancestral(process=process),
    DDIM(process=process, grid="karras"),
  ):
    with pytest.raises(ValueError, match="made for ddim on a uniform grid"):
      Progressive(denoiser=denoiser, sampler=sampler)
