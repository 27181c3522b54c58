import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffdistill.diffusion.prediction import from_prediction, from_x0
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import EDM, Cosine, RectifiedFlow
from diffdistill.diffusion.weighting import weight

values = st.lists(st.floats(-2, 2, width=32), min_size=8, max_size=8).map(
  lambda v: jnp.asarray(v, jnp.float32).reshape(4, 1, 1, 2)
)
times = st.lists(st.floats(0.1, 0.9), min_size=4, max_size=4).map(
  lambda t: jnp.asarray(t, jnp.float32)
)


def mse(a, b):
  return jnp.mean((a - b) ** 2, axis=(1, 2, 3))


def errors(schedule, truth, guess, x_t, t):
  """Mean squared errors of x0, eps and v, one of each per example."""
  alpha, sigma = GaussianProcess(schedule=schedule).coefficients(t, x_t)
  p, q = (from_x0(x0, x_t, alpha, sigma) for x0 in (truth, guess))
  return {
    output: mse(*(from_prediction(output, x, alpha, sigma) for x in (p, q)))
    for output in ("x0", "eps", "v")
  }


@settings(deadline=None, max_examples=20)
@given(truth=values, guess=values, x_t=values, t=times)
def test_each_weighting_of_the_x0_error_is_the_error_of_another_output(
  truth, guess, x_t, t
):
  """The weights apply to each example: Salimans & Ho 2022, section 4."""
  schedule = Cosine()
  error = errors(schedule, truth, guess, x_t, t)
  logsnr = schedule.logsnr(t)
  expected = {
    "constant": error["x0"],
    "snr": error["eps"],
    "truncated_snr": jnp.maximum(error["x0"], error["eps"]),
    "snr_plus_one": error["v"],
  }
  for name, value in expected.items():
    actual = weight(name, logsnr) * error["x0"]
    # atol is for the eps error, which has the rounding error of x_t / sigma.
    np.testing.assert_allclose(
      actual, value, rtol=1e-4, atol=1e-4, err_msg=name
    )


@pytest.mark.parametrize("schedule", [EDM(), RectifiedFlow()])
def test_snr_weighting_gives_the_eps_error_on_other_schedules(schedule):
  t = jnp.array([0.3, 0.5, 0.9])
  truth, guess = jnp.full((3, 1, 1, 2), 0.3), jnp.full((3, 1, 1, 2), -0.4)
  error = errors(schedule, truth, guess, 2 * truth, t)
  actual = weight("snr", schedule.logsnr(t)) * error["x0"]
  np.testing.assert_allclose(actual, error["eps"], rtol=1e-3)


def test_edm_weighting_agrees_with_the_formula_of_its_paper():
  """The weight is (sigma^2 + sigma_data^2) / (sigma sigma_data)^2."""
  sigma = np.array([0.002, 0.1, 1.0, 80.0])
  actual = weight("edm", jnp.asarray(-2 * np.log(sigma), jnp.float32))
  expected = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_clipped_snr_weighting_stays_between_0_01_and_5():
  snr = np.array([0.0, 1e-8, 0.009, 0.011, 1.0, 4.9, 5.1, 1e8])
  with np.errstate(divide="ignore"):
    actual = weight("clipped_snr", jnp.asarray(np.log(snr), jnp.float32))
  expected = [0.01, 0.01, 0.01, 0.011, 1.0, 4.9, 5.0, 5.0]
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_unknown_weightings_are_refused():
  with pytest.raises(ValueError, match="weighting is 'trunc'; pass one of"):
    weight("trunc", jnp.zeros(1))
