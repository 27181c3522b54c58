"""MeanFlow in one dimension, against closed forms.

The bounds are 1.5 times the errors of a perceptron that was trained by each
form. Each wrong form is at least five times worse than the right one.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.arrays import Condition
from diffdistill.denoiser import Denoiser
from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.prediction import Prediction
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import RectifiedFlow
from diffdistill.diffusion.weighting import adaptive
from diffdistill.objectives import mean_flow
from diffdistill.objectives.mean_flow import MeanFlow
from diffdistill.sampling.flow_map import FlowMap
from tests.objectives.maps_given import (
  GAUSSIAN,
  MODES,
  RIGHT,
  Linear,
  add_knobs,
  at_random,
  denoiser_of,
  error,
  lattice,
  sampler_of,
  solver,
)

BOUNDS = {
  "gaussian": {"data": 0.0278, "student": 0.0429},
  "modes": {"data": 0.1455, "student": 0.1335},
}


def problem(monkeypatch, tangent, data, rows, count=0):
  """A goal, its rows at s = 0, and for iMF as many rows at s = t."""
  network = Linear(times="t", count=count, separate=tangent == "student")
  goal = MeanFlow(
    denoiser=denoiser_of(network),
    sampler=sampler_of(),
    tangent=tangent,
    # With p > 0 the weight of a row depends on its own noise, which moves the
    # optimum of data of one dimension.
    power=0.0,
  )
  share_x0, share_eps, t = lattice(rows, 3)
  equal = np.arange(rows) % 2 == 0 if tangent == "student" else False
  s = np.where(equal, t, 0.0)
  batch = at_random(monkeypatch, mean_flow, data, t, s, share_x0, share_eps)
  return goal, batch


@pytest.mark.parametrize("tangent", ["data", "student"])
def test_mean_flow_reaches_the_flow_map_of_a_gaussian(tangent, monkeypatch):
  goal, batch = problem(monkeypatch, tangent, GAUSSIAN, 2000)
  knobs = add_knobs(monkeypatch)
  rounds = 3 if tangent == "student" else 1
  given = {"linear": True, "rounds": rounds, "knobs": knobs}
  solve = solver(goal, batch, None, **given)
  right, flipped, without_x = (
    solve(**{**RIGHT, **change})
    for change in ({}, {"derivative": -1.0}, {"x": 0.0})
  )
  wrong = [flipped, without_x]
  if tangent == "data":
    # The velocity of the data is not that of the flow, so a derivative that is
    # not stopped moves the optimum.
    with monkeypatch.context() as patch:
      patch.setattr(jax.lax, "stop_gradient", lambda x: x)
      wrong.append(solver(goal, batch, None, **given)(**RIGHT))
  monkeypatch.undo()
  found = error(goal, right, GAUSSIAN)
  assert found < BOUNDS["gaussian"][tangent]
  for params in wrong:
    assert not error(goal, params, GAUSSIAN) < 5 * found


@pytest.mark.parametrize("tangent", ["data", "student"])
def test_mean_flow_reaches_the_quantile_map_of_two_modes(tangent, monkeypatch):
  goal, batch = problem(monkeypatch, tangent, MODES, 8000, 100)
  rounds = 3 if tangent == "student" else 1
  params = solver(goal, batch, None, linear=True, rounds=rounds)()
  monkeypatch.undo()
  assert error(goal, params, MODES) < BOUNDS["modes"][tangent]


class ByLabel:
  """A network of two times whose velocity depends on the label alone."""

  two_times = True

  def init(self, key):
    return jnp.zeros(2)

  def apply(self, params, x, t, condition, *, s=None, key=None):
    return jnp.broadcast_to(
      params[condition.label][:, None, None, None], x.shape
    )


@pytest.mark.parametrize("own_share", [0.0, 0.4])
def test_the_guided_student_is_the_fixed_point_of_its_target(own_share):
  """If u is v + w (v - u_none), the target (2) of the guided rows is u."""
  process, w, v, untold = (
    GaussianProcess(schedule=RectifiedFlow()),
    1.5,
    0.3,
    -0.2,
  )
  goal = MeanFlow(
    denoiser=Denoiser(
      network=ByLabel(),
      process=process,
      output="velocity",
      conditional=True,
      null_label=1,
    ),
    sampler=FlowMap(process=process),
    guidance=Guidance(weight=w, interval=(0.2, 1.0)),
    own_share=own_share,
    label_dropout=0.1,
  )
  t = jnp.array([0.5, 0.5, 0.1])
  label = jnp.array([0, 1, 0])
  x_t = jnp.full((3, 1, 1, 1), 0.7)
  # On rectified flow, x0 = x_t - t v and eps = x_t + (1 - t) v.
  column = t.reshape(-1, 1, 1, 1)
  data = Prediction(x0=x_t - column * v, eps=x_t + (1 - column) * v)
  params = jnp.array([v + w * (v - untold), untold])
  flow, along = goal._flow(
    params, x_t, t, Condition(label=label), jnp.array([0.0, 1.0, 0.0]), data
  )
  assert along is None
  found = process.velocity(flow, x_t, t).ravel()
  # A hidden label and a time outside of the interval are not guided.
  np.testing.assert_allclose(found, [v + w * (v - untold), v, v], rtol=1e-4)


def test_the_adaptive_weight_makes_gradients_equally_large():
  errors = jnp.array([0.1, 10.0])
  gradient = jax.grad(lambda e: jnp.sum(adaptive(e, 1.0, 1e-6)))(errors)
  np.testing.assert_allclose(gradient * errors, 1.0, rtol=1e-4)
  np.testing.assert_array_equal(adaptive(errors, 0.0, 1e-6), errors)


def test_settings_without_a_sense_are_refused_in_one_line():
  goal = MeanFlow(denoiser=denoiser_of(Linear()), sampler=sampler_of())
  for fields, message in (
    ({"tangent": "flow"}, "tangent is 'flow'; pass one of data, student"),
    ({"own_share": 0.5}, "guidance.weight is 0, so that it has no effect"),
    ({"label_dropout": 0.1}, "null label is None; pass both or neither"),
    ({"power": 3.0}, "power is 3"),
    (
      {"guidance": Guidance(weight=1.0, together=True)},
      "together is True, but",
    ),
  ):
    with pytest.raises(ValueError, match=message) as refusal:
      dataclasses.replace(goal, **fields)
    assert "\n" not in str(refusal.value)
