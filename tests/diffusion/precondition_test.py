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
