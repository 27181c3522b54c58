import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.arrays import UNCONDITIONAL, Condition
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.precondition import Identity
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.objectives.denoising_student import DenoisingStudent
from diffdistill.objectives.objective import Objective, turn_of
from diffdistill.sampling.ddim import DDIM
from diffdistill.sampling.one_step import OneStep
from tests.diffusion.given import SCHEDULES
from tests.objectives.given import (
  OneTime,
  check_copies,
)
from tests.objectives.given import loss_of as loss_of_trees


@dataclasses.dataclass(frozen=True)
class Affine(OneTime):
  """A network that outputs scale x + shift at t = 1, and NaN at other times.

  It also records its calls.
  """

  heard: list = dataclasses.field(default_factory=list)

  def init(self, key):
    return {"scale": jnp.float32(1.0), "shift": jnp.float32(0.0)}

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    self.heard.append({"t": t, "label": condition.label, "s": s, "key": key})
    at_one = jnp.where(t == 1, 1.0, jnp.nan).reshape(-1, 1, 1, 1)
    return (params["scale"] * x + params["shift"]) * at_one


def objective(schedule="cosine", form="x0", norm="l2", network=None, **fields):
  process = GaussianProcess(schedule=SCHEDULES[schedule])
  fields = {
    "network": network or Affine(),
    "output": "x0" if form == "x0" else "eps",
    "precondition": Identity(noise="time"),
  } | fields
  return DenoisingStudent(
    denoiser=Denoiser(process=process, **fields),
    sampler=OneStep(process=process, form=form),
    norm=norm,
  )


def noise(n=64, seed=0):
  """Draws noise and rounds it to float16, as stored pairs have it."""
  values = np.random.default_rng(seed).normal(size=(n, 1, 2, 3))
  return jnp.asarray(values.astype(np.float16).astype(np.float32))


def loss_of(goal, params, batch, key=0):
  batch = {"condition": UNCONDITIONAL, **batch}
  return loss_of_trees(
    goal, {"student": params}, batch, jax.random.key(key), num_steps=1, guided=0
  )


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize(
  ("schedule", "form"),
  [
    ("cosine", "x0"),
    ("linear", "x0"),
    ("edm", "x0"),
    ("flow", "x0"),
    ("linear", "difference"),
  ],
)
def test_the_loss_compares_the_images_of_the_sampler(schedule, form, norm):
  goal = objective(schedule, form, norm)
  params = {"scale": jnp.float32(0.7), "shift": jnp.float32(0.2)}
  batch = {"noise": noise(), "image": jnp.tanh(noise(seed=1))}
  loss, metrics = loss_of(goal, params, batch)
  sampler = dataclasses.replace(goal.sampler, clip=False)
  x = sampler.start(batch["noise"], 1)
  images = sampler(goal.denoiser.bind(params), x, jax.random.key(9), 1)
  # The tolerance is for float32 operations in another order.
  error = np.asarray(images, np.float64) - np.asarray(batch["image"])
  plain = np.mean(error**2)
  expected = plain if norm == "l2" else np.mean(np.abs(error))
  assert float(loss) == pytest.approx(expected, rel=1e-5)
  for name, value in (("loss", expected), ("x0_mse", plain)):
    total, count = metrics[f"student/{name}"]
    assert float(count) == 64
    assert float(total) == pytest.approx(64 * value, rel=1e-5)
  # At t = 1 these schedules have an alpha close to 0 and a sigma close to 1.
  if schedule in ("cosine", "flow", "linear"):
    output = 0.7 * batch["noise"] + 0.2
    by_hand = output if form == "x0" else batch["noise"] - output
    np.testing.assert_allclose(images, by_hand, atol=1e-4)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_exact_map_has_no_loss_and_no_gradient(norm):
  """The same operations compute the images, so the loss is exactly 0."""
  goal = objective("linear", "x0", norm)
  params = {"scale": jnp.float32(0.7), "shift": jnp.float32(0.2)}
  x = goal.sampler.start(noise(), 1)
  batch = {"noise": noise(), "image": params["scale"] * x + params["shift"]}
  (loss, metrics), gradient = jax.value_and_grad(
    lambda p: loss_of(goal, p, batch), has_aux=True
  )(params)
  assert float(loss) == 0
  assert float(metrics["student/x0_mse"][0]) == 0
  assert all(float(leaf) == 0 for leaf in jax.tree.leaves(gradient))
  # For a student beside the exact map, the loss must be positive.
  for name in params:
    beside = params | {name: params[name] + 0.01}
    assert float(loss_of(goal, beside, batch)[0]) > 1e-5


@pytest.mark.parametrize("form", ["x0", "difference"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_gradient_agrees_with_finite_differences(norm, form):
  goal = objective("linear", form, norm)
  batch = {"noise": noise(), "image": jnp.tanh(noise(seed=1))}

  def loss(shift):
    params = {"scale": jnp.float32(0.5), "shift": shift}
    return loss_of(goal, params, batch)[0]

  for shift in (-2.0, 0.1, 2.0):
    actual = float(jax.grad(loss)(jnp.float32(shift)))
    high, low = (float(loss(jnp.float32(shift + d))) for d in (0.02, -0.02))
    # The tolerance is for the kink of the L1 norm, which lies inside the finite
    # difference for up to 3 of 100 pixels.
    assert actual == pytest.approx((high - low) / 0.04, abs=0.03)
    # A shift moves the image out of [-1, 1], where the images are, so the
    # gradient must move it back.
    if abs(shift) == 2:
      assert np.sign(actual) == np.sign(shift)


def test_images_beyond_the_range_still_have_a_gradient():
  """The sampler clips its images, but the loss takes them unclipped."""
  goal = objective("flow", "x0", "l1")
  assert goal.sampler.clip
  batch = {"noise": noise(), "image": jnp.ones((64, 1, 2, 3))}

  def loss(shift):
    params = {"scale": jnp.float32(0.0), "shift": shift}
    return loss_of(goal, params, batch)[0]

  value, slope = jax.value_and_grad(loss)(jnp.float32(3.0))
  assert float(value) == 2
  assert float(slope) == pytest.approx(1, rel=1e-5)


def test_the_student_gets_its_label_and_no_key():
  network = Affine()
  goal = objective(network=network, conditional=True)
  label = jnp.arange(64) % 3
  batch = {
    "noise": noise(),
    "image": noise(seed=1),
    "condition": Condition(label=label),
  }
  params = network.init(jax.random.key(0))
  losses = [float(loss_of(goal, params, batch, key)[0]) for key in (0, 1)]
  assert losses[0] == losses[1]
  assert len(network.heard) == 2
  for call in network.heard:
    np.testing.assert_array_equal(call["t"], np.ones(64))
    np.testing.assert_array_equal(call["label"], label)
    assert call["key"] is None
    assert call["s"] is None


def test_the_student_starts_as_a_copy_of_the_teacher():
  teacher = {"scale": jnp.ones(3), "shift": jnp.zeros(2)}
  goal = objective()
  assert isinstance(goal, Objective)
  params = goal.init(jax.random.key(0), {"teacher": teacher})
  assert set(params) == {"student"}
  check_copies(params, teacher)


def test_the_student_trains_alone_and_costs_one_gradient():
  goal = objective()
  assert goal.passes(("student",), 1, False).units == 3
  assert tuple(goal.trees) == turn_of(goal, 7) == ("student",)
  # The student starts as a copy of the teacher, but no update needs the
  # teacher.
  assert goal.starts == ("teacher",)
  assert goal.needs == {}
  assert (goal.consumes, goal.rounds) == ("pairs", "one_step")


@pytest.mark.parametrize("output", ["x0", "v", "velocity", "both"])
def test_the_difference_form_needs_an_eps_network(output):
  with pytest.raises(ValueError, match=f"'difference', .* is '{output}'; pass"):
    objective(form="difference", output=output)


def test_an_unknown_norm_and_another_sampler_are_refused():
  with pytest.raises(ValueError, match="norm is 'l3'; pass one of l1, l2"):
    objective(norm="l3")
  goal = objective()
  ddim = DDIM(process=goal.denoiser.process)
  with pytest.raises(
    ValueError, match="made for one_step, not DDIM; pass samp"
  ):
    dataclasses.replace(goal, sampler=ddim)
