"""Tests that no draw near t = 1 dominates the gradient of a batch.

The batches are those of moment matching.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from diffdistill.arrays import UNCONDITIONAL
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.precondition import EDMPrecondition, Identity
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import EDM, Cosine, LinearBeta
from diffdistill.objectives import sensitivity
from diffdistill.objectives.moment_matching import (
  MomentMatching,
  ParameterMomentMatching,
)
from diffdistill.sampling.ancestral import Ancestral
from tests.objectives.given import OneTime, batch_of, loss_of


@dataclasses.dataclass(frozen=True)
class Affine(OneTime):
  """A network that outputs gain x + shift."""

  def init(self, key):
    return {"gain": jnp.zeros(()), "shift": jnp.zeros(())}

  def apply(self, params, x, t, condition=UNCONDITIONAL, *, s=None, key=None):
    return params["gain"] * x + params["shift"]


def denoiser_of(output, schedule=None, **fields):
  return Denoiser(
    network=Affine(),
    process=GaussianProcess(schedule=schedule or Cosine()),
    output=output,
    **({"precondition": Identity()} | fields),
  )


def objective(output, schedule=None, kind=ParameterMomentMatching):
  denoiser = denoiser_of(output, schedule)
  sampler = Ancestral(process=denoiser.process)
  fields = {"denoiser": denoiser, "sampler": sampler, "times": "grid"}
  if kind is ParameterMomentMatching:
    fields["preconditioner"] = "identity"
  return kind(**fields)


def test_sensitivity_agrees_with_its_formula():
  """For example, if a network predicts eps, it is sigma / alpha."""
  for schedule in (Cosine(), Cosine(logsnr_min=-8.0), LinearBeta()):
    t = jnp.ones(1)
    alpha, sigma = float(schedule.alpha(t)[0]), float(schedule.sigma(t)[0])
    slopes = {
      "x0": 1,
      "eps": sigma / alpha,
      "v": sigma,
      "score": sigma**2 / alpha,
      "velocity": sigma / (alpha + sigma),
      "both": abs(sigma**2 - alpha * sigma),
    }
    for output, slope in slopes.items():
      found = sensitivity.sensitivity(denoiser_of(output, schedule))
      assert found == pytest.approx(slope, rel=1e-3)
  # With EDM's preconditioning, the sensitivity of x0 equals c_out.
  edm = denoiser_of("x0", EDM(), precondition=EDMPrecondition())
  c_out = 80 * 0.5 / math.hypot(80, 0.5)
  assert sensitivity.sensitivity(edm) == pytest.approx(c_out, rel=1e-3)


@pytest.mark.parametrize("schedule", [Cosine(), LinearBeta()])
def test_networks_of_eps_and_score_are_refused(schedule):
  for output in ("eps", "score"):
    with pytest.raises(
      ValueError, match=r"model\.output is .*; pass a teacher"
    ):
      objective(output, schedule)
  for output in ("x0", "v", "velocity", "both"):
    objective(output, schedule)
  # These schedules leave a part of the image in x_1, so a network that predicts
  # eps determines x0 well enough.
  objective("eps", Cosine(logsnr_min=-4.0))


def gradient(goal, weighting="clipped_snr"):
  """Computes the gradient's norm for a student that is not at the optimum."""
  goal = dataclasses.replace(goal, weighting=weighting)
  teacher = {"gain": jnp.float32(0.4), "shift": jnp.float32(0.1)}
  auxiliary = {"gain": jnp.float32(0.5), "shift": jnp.float32(0.0)}
  student = {"gain": jnp.float32(0.7), "shift": jnp.float32(-0.2)}
  key_image, key = jax.random.split(jax.random.key(0))
  image = 0.5 * jax.random.normal(key_image, (512, 1, 1, 2))

  def loss(student):
    now = {"num_steps": 8, "guided": 0}
    trees = {"student": student, "auxiliary": auxiliary, "teacher": teacher}
    return loss_of(goal, trees, batch_of(image), key, ("student",), **now)[0]

  tree = jax.jit(jax.grad(loss))(student)
  return math.hypot(*(float(leaf) for leaf in jax.tree.leaves(tree)))


@pytest.mark.parametrize(
  ("kind", "drowned"), [(MomentMatching, 1e3), (ParameterMomentMatching, 1e9)]
)
def test_the_gradient_of_a_wrong_student_is_not_too_large(
  kind, drowned, monkeypatch
):
  assert 1e-3 < gradient(objective("v", kind=kind)) < 10
  # The gradient of a network that is refused is too large with every weighting.
  monkeypatch.setattr(sensitivity, "MAX_SENSITIVITY", math.inf)
  for weighting in ("clipped_snr", "snr"):
    assert gradient(objective("eps", kind=kind), weighting) > drowned
