import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.diffusion.precondition import EDMPrecondition, Identity
from diffdistill.diffusion.schedule import (
  EDM,
  Cosine,
  LinearBeta,
  RectifiedFlow,
)

T = jnp.array([0.0, 0.2, 0.5, 0.9, 1.0])


def test_identity_does_not_scale_input_or_output():
  scaling = Identity().scaling(Cosine(), T)
  np.testing.assert_array_equal(scaling.c_skip, 0)
  np.testing.assert_array_equal(scaling.c_out, 1)
  np.testing.assert_array_equal(scaling.c_in, 1)


def test_noise_is_given_as_angle_time_or_index():
  cosine, linear = Cosine(), LinearBeta()
  angle = Identity().scaling(cosine, T).c_noise
  expected = np.arctan(np.exp(-0.5 * np.asarray(cosine.logsnr(T), np.float64)))
  np.testing.assert_allclose(angle, expected / (np.pi / 2), rtol=1e-5)
  time = Identity(noise="time").scaling(cosine, T).c_noise
  np.testing.assert_array_equal(time, T)
  t = jnp.array([0.001, 0.5, 1.0])
  index = Identity(noise="index", num_steps=1000).scaling(linear, t).c_noise
  np.testing.assert_allclose(1000 * index, [0, 499, 999], atol=1e-4)
  with pytest.raises(ValueError, match="noise is 'logsnr'; pass one of angle"):
    Identity(noise="logsnr")


@pytest.mark.parametrize(
  "schedule", [Cosine(), LinearBeta(), EDM(), RectifiedFlow()]
)
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edm_gives_input_and_target_unit_variance(schedule, sigma_data):
  """Checks the two requirements of Karras et al. 2022, appendix B.6."""
  scaling = EDMPrecondition(sigma_data=sigma_data).scaling(schedule, T)
  c_skip, c_out, c_in, c_noise = (np.asarray(c, np.float64) for c in scaling)
  alpha, sigma = (
    np.asarray(f(T), np.float64) for f in (schedule.alpha, schedule.sigma)
  )
  variance_in = c_in**2 * (alpha**2 * sigma_data**2 + sigma**2)
  np.testing.assert_allclose(variance_in, 1, rtol=1e-5)
  # The variance of F's target, (x0 - c_skip x_t) / c_out, must be 1 too.
  residual = (1 - c_skip * alpha) ** 2 * sigma_data**2 + (c_skip * sigma) ** 2
  np.testing.assert_allclose(residual / c_out**2, 1, rtol=2e-3)
  np.testing.assert_allclose(
    c_noise, np.log(sigma / alpha) / 4000, rtol=1e-4, atol=1e-9
  )


def test_edm_on_the_edm_schedule_agrees_with_table_1():
  schedule = EDM()
  sigma = np.asarray(schedule.sigma(T), np.float64)
  c_skip, c_out, c_in, _ = EDMPrecondition().scaling(schedule, T)
  np.testing.assert_allclose(c_skip, 0.25 / (sigma**2 + 0.25), rtol=1e-5)
  np.testing.assert_allclose(
    c_out, sigma * 0.5 / np.sqrt(sigma**2 + 0.25), rtol=1e-5
  )
  np.testing.assert_allclose(c_in, 1 / np.sqrt(sigma**2 + 0.25), rtol=1e-5)


@pytest.mark.parametrize(
  "schedule", [Cosine(), LinearBeta(), EDM(), RectifiedFlow()]
)
def test_edm_with_a_boundary_returns_the_clean_image_at_the_clean_end(schedule):
  """Song et al. 2023, appendix C, for every schedule."""
  plain, scaling = (
    EDMPrecondition(boundary=boundary).scaling(schedule, T)
    for boundary in (False, True)
  )
  alpha, sigma = (
    np.asarray(f(T), np.float64) for f in (schedule.alpha, schedule.sigma)
  )
  assert float(scaling.c_skip[0]) == pytest.approx(1 / alpha[0], rel=1e-6)
  assert float(scaling.c_out[0]) == 0
  assert float(plain.c_out[0]) > 0
  tau, lowest = sigma / alpha, sigma[0] / alpha[0]
  skip = 0.25 / ((tau - lowest) ** 2 + 0.25) / alpha
  out = 0.5 * (tau - lowest) / np.sqrt(tau**2 + 0.25)
  np.testing.assert_allclose(scaling.c_skip, skip, rtol=1e-4)
  np.testing.assert_allclose(scaling.c_out, out, rtol=1e-4)
  np.testing.assert_array_equal(scaling.c_in, plain.c_in)


def test_the_noise_may_be_given_as_250_times_its_logarithm():
  """Embeddings multiply by 1000, so the network gets 250 log(sigma)."""
  scaling = EDMPrecondition(noise_factor=250.0).scaling(EDM(), T)
  sigma = np.asarray(EDM().sigma(T), np.float64)
  np.testing.assert_allclose(
    1000 * scaling.c_noise, 250 * np.log(sigma), rtol=1e-4, atol=1e-3
  )
