"""Tests that the loss of classifier features agrees with sums by hand."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffdistill.arrays import UNCONDITIONAL
from diffdistill.diffusion.guidance import Guidance
from diffdistill.networks.classifier import Classification, LinenClassifier
from diffdistill.objectives.objective import turn_of
from diffdistill.objectives.progressive import Progressive, two_step_target
from diffdistill.sampling.ancestral import Ancestral
from diffdistill.sampling.ddim import DDIM
from tests.objectives.features_given import (
  IMAGES,
  PROCESS,
  STUDENT,
  TEACHER,
  WEIGHTS,
  by_hand,
  constant,
  evaluate,
  objective,
  softmax,
)
from tests.objectives.given import OneTime, batch_of, loss_of


@pytest.mark.parametrize(
  ("temperature", "dataset_weight", "entropy_share"),
  [(1.0, 0.0, 0.75), (0.7, 0.0, 0.75), (0.95, 0.5, 0.75), (0.95, 2.0, 0.0)],
)
def test_loss_and_gradient_agree_with_sums_by_hand(
  temperature, dataset_weight, entropy_share
):
  goal = objective(
    temperature=temperature,
    dataset_weight=dataset_weight,
    entropy_share=entropy_share,
  )
  loss, _, (gradient, _), heard = evaluate(goal, STUDENT, TEACHER)
  expected, expected_gradient = by_hand(goal, heard)
  assert float(loss) == pytest.approx(expected, rel=1e-5)
  for name, value in gradient.items():
    assert abs(expected_gradient[name]) > 1e-2
    assert float(value) == pytest.approx(expected_gradient[name], rel=1e-5)


def test_inputs_and_times_are_the_same_as_in_progressive():
  goal = objective()
  progressive = Progressive(denoiser=goal.denoiser, sampler=goal.sampler)
  _, metrics, _, heard = evaluate(goal, STUDENT, TEACHER)
  _, expected, _, theirs = evaluate(progressive, STUDENT, TEACHER)
  assert len(heard) == 3
  jax.tree.map(np.testing.assert_array_equal, heard, theirs)
  np.testing.assert_allclose(
    metrics["student/x0_mse"], expected["student/x0_mse"], rtol=1e-6
  )


def at(goal, student, teacher):
  """Computes (loss, gradients) of student and teacher with constant output."""
  loss, _, (gradient, _), _ = evaluate(
    goal, constant(student), constant(teacher)
  )
  return float(loss), {name: float(value) for name, value in gradient.items()}


def test_at_temperature_one_a_student_at_its_target_has_no_gradient():
  goal = objective(temperature=1.0, dataset_weight=0.0)
  loss, gradient = at(goal, 0.4, 0.4)
  np.testing.assert_allclose([loss, *gradient.values()], 0, atol=1e-6)
  # Away from the target the loss must be positive, and its gradient must point
  # away from the target.
  loss, gradient = at(goal, 0.6, 0.4)
  assert loss > 1e-3
  assert gradient["offset"] > 1e-2
  assert at(goal, 0.2, 0.4)[1]["offset"] < -1e-2


@pytest.mark.parametrize("temperature", [0.5, 0.95, 1.5])
def test_linear_features_have_no_gradient_at_the_target_over_the_temperature(
  temperature,
):
  goal = objective(temperature=temperature, dataset_weight=0.0)
  loss, gradient = at(goal, 0.4 / temperature, 0.4)
  np.testing.assert_allclose([loss, *gradient.values()], 0, atol=1e-6)
  # With a temperature below 1, a student that equals the target has a gradient.
  _, gradient = at(goal, 0.4, 0.4)
  assert np.sign(gradient["offset"]) == np.sign(temperature - 1)
  assert abs(gradient["offset"]) > 1e-3


def test_a_student_learns_the_target_over_the_temperature():
  """At t = 1 the target of an affine teacher is an affine function of x_t."""
  goal = objective(temperature=0.8, dataset_weight=0.0)
  optimizer = optax.adam(0.05)

  @jax.jit
  def train(student):
    def update(state, key):
      student, opt_state = state
      gradient = jax.grad(
        lambda p: loss_of(
          goal,
          {"student": p, "teacher": TEACHER, "classifier": WEIGHTS},
          batch_of(IMAGES),
          jax.random.key(key),
          num_steps=1,
        )[0]
      )(student)
      updates, opt_state = optimizer.update(gradient, opt_state)
      return (optax.apply_updates(student, updates), opt_state), None

    state = (student, optimizer.init(student))
    return jax.lax.scan(update, state, jnp.arange(300))[0][0]

  student = train(STUDENT)
  one, half, zero = jnp.ones(1), jnp.full(1, 0.5), jnp.zeros(1)

  def target(x):
    x_t = jnp.full((1, 1, 1, 1), x)
    teacher = goal.denoiser.bind(TEACHER)
    return float(
      two_step_target(PROCESS, teacher, x_t, one, half, zero)[0, 0, 0, 0]
    )

  expected = {"offset": target(0.0), "scale": target(1.0) - target(0.0)}
  for name, value in student.items():
    assert float(value) == pytest.approx(expected[name] / 0.8, abs=1e-5)


def test_metrics_add_up_to_the_loss():
  goal = objective(dataset_weight=0.1, entropy_share=0.6)
  loss, metrics, _, _ = evaluate(goal, STUDENT, TEACHER)
  assert {float(count) for _, count in metrics.values()} == {16}
  mean = {name: float(total) / 16 for name, (total, _) in metrics.items()}
  assert mean["student/loss"] == pytest.approx(float(loss), rel=1e-6)
  expected = mean["student/feature_kl"] + 0.1 * (
    0.6 * mean["student/entropy"] + 0.4 * mean["student/diversity"]
  )
  assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_logits_are_not_used_without_dataset_terms():
  weights = WEIGHTS | {"logits": np.full((5, 3), np.nan, np.float32)}
  loss, metrics, _, _ = evaluate(
    objective(dataset_weight=0.0), STUDENT, TEACHER, weights=weights
  )
  assert np.isfinite(loss)
  assert set(metrics) == {
    "student/loss",
    "student/feature_kl",
    "student/x0_mse",
  }


def test_only_the_student_is_trained():
  goal = objective()
  assert goal.needs == {"teacher": "denoiser", "classifier": "classifier"}
  frozen = {"teacher": TEACHER, "classifier": WEIGHTS}
  params = goal.init(jax.random.key(0), frozen)
  assert set(params) == set(turn_of(goal, 0)) == {"student"}
  jax.tree.map(np.testing.assert_array_equal, params["student"], TEACHER)
  for name, value in params["student"].items():
    assert value is not TEACHER[name]
  _, _, (of_student, of_frozen), _ = evaluate(goal, STUDENT, TEACHER)
  assert all(np.abs(value) > 1e-6 for value in of_student.values())
  for value in of_frozen["teacher"].values():
    np.testing.assert_array_equal(value, 0)


class Pixels(nn.Module):
  """A classifier whose features and logits are three times its input."""

  @nn.compact
  def __call__(self, x, train):
    features = 3 * x.reshape(x.shape[0], -1)
    return Classification(logits=features, features=features)


def test_each_classifier_input_has_its_normalisation():
  """The models output constants, so the classifier's input is known."""
  classifier = LinenClassifier(
    module=Pixels(), image_shape=(1, 1, 3), normalisation="cifar10"
  )

  def loss(name):
    goal = objective(
      classifier=classifier,
      classifier_input=name,
      temperature=0.5,
      dataset_weight=0.0,
    )
    image = jnp.zeros((2, 1, 1, 3))
    return evaluate(
      goal, constant(-0.5), constant(0.5), image=image, weights={}
    )[0]

  def expected(target, student):
    p, q = softmax(np.array([target]) * 6), softmax(np.array([student]) * 3)
    return np.sum(p * np.log(p / q))

  mean = np.array([0.4914, 0.4822, 0.4465])
  std = np.array([0.2023, 0.1994, 0.2010])
  normalised = expected((0.75 - mean) / std, (0.25 - mean) / std)
  assert normalised > 1e-2
  assert float(loss("as_trained")) == pytest.approx(normalised, rel=1e-4)
  # With this classifier input all features are equal, so the divergence of the
  # features is zero.
  assert float(loss("reference_mismatch")) == pytest.approx(0, abs=1e-6)


@dataclasses.dataclass(frozen=True)
class Echo(OneTime):
  """A network that outputs the label plus its only weight."""

  def init(self, key):
    return {}

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    return params + 0 * x + condition.label[:, None, None, None]


def test_the_first_teacher_is_guided_and_a_student_is_not():
  denoiser = dataclasses.replace(
    objective(Echo()).denoiser, conditional=True, null_label=0
  )
  goal = objective(denoiser=denoiser, guidance=Guidance(weight=2.0))
  label = jnp.ones(16, jnp.int32)
  for guided, target in ((0, 1), (1, 1 + 2 * (1 - 0))):
    # The student outputs its label 1 plus its weight -1, which is 0.
    _, metrics, _, _ = evaluate(
      goal, jnp.float32(-1), jnp.float32(0), label=label, guided=guided
    )
    total, count = metrics["student/x0_mse"]
    assert float(total / count) == pytest.approx(target**2)
  assert goal.passes(("student",), 4, True).forward == 4
  unguided = goal.passes(("student",), 4, False)
  assert unguided.forward == 2
  assert unguided.units == 5
  assert unguided.classifier == 1
  assert unguided.classifier_gradient == 1


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"temperature": 0.0}, r"temperature is 0\.0; pass 0\.001 or more"),
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"dataset_weight": -1.0}, r"dataset_weight is -1\.0; pass 0"),
    (
      {"entropy_share": 1.5},
      r"entropy_share is 1\.5; pass a value in \[0, 1\]",
    ),
    ({"classifier_input": "x"}, "input is 'x'; pass one of as_trained, refer"),
    (
      {"classifier_input": "reference_mismatch"},
      "but a Linear does not normalise its images; pass as_trained",
    ),
    (
      {"sampler": Ancestral(process=PROCESS)},
      "for ddim on a uniform grid from t = 1, not",
    ),
    (
      {"sampler": DDIM(process=PROCESS, grid="karras")},
      "for ddim on a uniform grid from t = 1, not DDIM on karras",
    ),
  ],
)
def test_impossible_fields_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    objective(**fields)
