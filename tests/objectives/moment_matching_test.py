"""Tests losses, gradients and passes of moment matching by formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.schedule import Cosine
from diffdistill.networks.analytic import GaussianMixture
from diffdistill.objectives.moment_matching import (
  MomentMatching,
  ParameterMomentMatching,
)
from diffdistill.objectives.objective import Objective, turn_of
from diffdistill.sampling.ancestral import Ancestral
from diffdistill.sampling.ddim import DDIM
from tests.objectives.given import (
  MIXTURE,
  check_copies,
)
from tests.objectives.moment_given import (
  KINDS,
  Blend,
  Listener,
  Table,
  blend,
  calls_of,
  compiled_gradient,
  images,
  mean_of,
  moment_loss_of,
  objective,
)


def test_losses_of_constant_networks_agree_with_formulas():
  """The student outputs a constant c, the auxiliary a, and the teacher b."""
  a, b, c = 0.4, -0.3, 1.5
  network = Blend(GaussianMixture(schedule=Cosine()))
  goal = objective(MomentMatching, network, weighting="constant")
  trees = blend(shift=c), blend(shift=a), blend(shift=b)
  key = jax.random.key(0)
  x0 = images(8)
  loss, metrics = jax.jit(
    lambda trees: moment_loss_of(goal, "auxiliary", trees, x0, key)
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
    return moment_loss_of(goal, "auxiliary", trees, x0, key)[0]

  # The auxiliary's loss must be least halfway between student and teacher.
  assert float(gradient_at((b + c) / 2)) == pytest.approx(0, abs=1e-6)
  assert float(gradient_at(a)) == pytest.approx(2 * (2 * a - b - c), rel=1e-5)


@pytest.mark.parametrize("guided", [0, 1])
def test_only_the_teacher_is_guided(guided):
  """The teacher outputs p1 if it gets the label, and p0 without the label.

  With guidance weight w, the guided output is g = p1 + w (p1 - p0).
  """
  p0, p1, c, a, w = 0.3, -0.4, 1.5, 0.2, 2.0 * guided
  model = {"conditional": True, "null_label": 0}
  fields = {"weighting": "constant", "guidance": Guidance(weight=2.0)}
  trees = tuple(jnp.array(v) for v in ([9, c, 9], [9, a, 9], [p0, p1, 9.0]))
  label = jnp.ones(8, jnp.int32)
  g = p1 + w * (p1 - p0)
  expected = {
    MomentMatching: (c * (a - g), 2 * (c - g) * (a - g)),
    # The gradient m has two components: 2 w (c - g) for p0 and -2 (1 + w) (c -
    # g) for p1, where c is the student's output.
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


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_flows_through_x_s(kind):
  """params . gradient equals the loss if no gradient flows through x_s.

  This holds because x0 is linear in the student's parameters here, and for a
  fixed x_s the loss is linear in x0.
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
def test_there_is_no_gradient_if_the_auxiliary_is_the_teacher(dropout):
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
def test_without_dropout_no_network_gets_a_key(kind):
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


LABEL = jnp.array([0, 1, 0, 1, 0, 2])


@pytest.mark.parametrize("name", ["auxiliary", "student"])
def test_an_alternating_update_calls_each_network_once(name):
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
  # The loss calls the network three times and differentiates one of the calls.
  # Two calls cost 2 units and the third costs 3.
  assert passes.forward + passes.gradient == len(calls)
  assert passes.units == 5


def test_the_two_halves_of_a_parameter_space_update_are_independent():
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
  # Only the labels in the first half of the batch get a gradient. Here that is
  # label 0.
  np.testing.assert_array_equal(gradient[1:], 0)
  for _, count in metrics.values():
    assert float(count) == 3
  # Together, the two halves have a forward pass (1), a gradient (3), a tangent
  # (3) and another gradient (3). Units are counted per example of the whole
  # batch, so the sum is halved.
  assert goal.passes(("student",), 4, False).units == 0.5 * (1 + 3 + 3 + 3)
  with pytest.raises(ValueError, match="batch size is 3; pass an even one"):
    moment_loss_of(goal, "student", (one, None, one), images(3), key)


@pytest.mark.parametrize("kind", KINDS)
def test_student_and_auxiliary_take_turns(kind):
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
def test_unknown_fields_and_other_samplers_are_refused(kind):
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
