import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffdistill.diffusion.schedule import (
  EDM,
  Cosine,
  CosineBeta,
  LinearBeta,
  RectifiedFlow,
  Shifted,
)
from tests.diffusion.given import ALL_SCHEDULES

VARIANCE_PRESERVING = [n for n in ALL_SCHEDULES if n not in ("edm", "flow")]
every_schedule = pytest.mark.parametrize("name", ALL_SCHEDULES)

# Each example has eight times, because an array of eight costs as much as one
# number.
times = st.lists(st.floats(0, 1, width=32), min_size=8, max_size=8).map(
  lambda t: jnp.asarray(t, jnp.float32)
)


@every_schedule
def test_noise_rises_with_time_and_is_finite_at_both_ends(name):
  schedule, t = ALL_SCHEDULES[name], jnp.linspace(0, 1, 1001)
  alpha, sigma, logsnr, angle = (
    np.asarray(f(t))
    for f in (schedule.alpha, schedule.sigma, schedule.logsnr, schedule.angle)
  )
  assert np.all(np.diff(logsnr) < 0)
  assert np.all(np.diff(angle) > 0)
  assert alpha.min() > 0
  assert sigma.min() > 0
  assert np.all(np.isfinite(logsnr))
  if name in VARIANCE_PRESERVING:
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-6)


@every_schedule
def test_derivatives_are_finite_at_both_ends(name):
  schedule = ALL_SCHEDULES[name]

  def both(t):
    one = jnp.ones_like(t)
    angle, logsnr = schedule.angle, schedule.logsnr
    return [jax.jvp(f, (t,), (one,))[1] for f in (angle, logsnr)]

  d_angle, d_logsnr = jax.jit(both)(jnp.array([0.0, 0.5, 1.0]))
  assert np.all(np.isfinite(d_angle))
  assert np.all(np.isfinite(d_logsnr))


@every_schedule
@settings(deadline=None, max_examples=8)
@given(t=times)
def test_time_inverts_logsnr(name, t):
  schedule = ALL_SCHEDULES[name]
  # Schedules that clip both ends give times within the clip the same logSNR,
  # so their inverse is less exact.
  clipped = ("linear", "cosine_beta", "shifted_linear", "flow")
  atol = 2e-5 if name in clipped else 1e-6
  np.testing.assert_allclose(schedule.time(schedule.logsnr(t)), t, atol=atol)


@every_schedule
@settings(deadline=None, max_examples=8)
@given(t=times, s=times, r=times)
def test_rotation_is_the_difference_of_two_angles(name, t, s, r):
  schedule = ALL_SCHEDULES[name]
  ts = schedule.rotation(t, s)
  np.testing.assert_allclose(
    ts, schedule.angle(t) - schedule.angle(s), atol=5e-7
  )
  np.testing.assert_allclose(ts, -schedule.rotation(s, t), atol=1e-7)
  np.testing.assert_allclose(
    ts + schedule.rotation(s, r), schedule.rotation(t, r), atol=1e-6
  )


@every_schedule
def test_time_stays_within_the_unit_interval(name):
  t = ALL_SCHEDULES[name].time(jnp.array([-60.0, 60.0]))
  assert t[0] == pytest.approx(1, abs=1e-6)
  assert t[1] == pytest.approx(0, abs=1e-6)
  assert t.min() >= 0
  assert t.max() <= 1


def test_cosine_ends_at_logsnr_20_and_minus_20():
  """Salimans & Ho 2022 stop at a logSNR of -20 and 20."""
  schedule, t = Cosine(), jnp.array([0.0, 1.0])
  end = np.sin(np.arctan(np.exp(-10.0)))
  np.testing.assert_allclose(schedule.alpha(t)[1], end, rtol=1e-4)
  np.testing.assert_allclose(schedule.sigma(t)[0], end, rtol=1e-4)
  np.testing.assert_allclose(schedule.logsnr(t), [20, -20], rtol=1e-5)


def test_cosine_agrees_with_the_formula_of_the_paper():
  """The formula is logsnr(t) = -2 log tan(a t + b), here in float64."""
  t = np.linspace(0, 1, 1025, dtype=np.float32)
  b = np.arctan(np.exp(-10.0))
  a = np.arctan(np.exp(10.0)) - b
  angle = a * t.astype(np.float64) + b
  schedule, t = Cosine(), jnp.asarray(t)
  np.testing.assert_allclose(
    schedule.logsnr(t), -2 * np.log(np.tan(angle)), rtol=1e-5, atol=1e-5
  )
  np.testing.assert_allclose(schedule.alpha(t), np.cos(angle), rtol=1e-5)
  np.testing.assert_allclose(schedule.sigma(t), np.sin(angle), rtol=1e-5)


def test_cosine_ends_at_the_configured_logsnr():
  schedule = Cosine(logsnr_min=-8.0, logsnr_max=12.0)
  np.testing.assert_allclose(
    schedule.logsnr(jnp.array([0.0, 1.0])), [12, -8], rtol=1e-5
  )


def test_linear_beta_agrees_with_ddpm_at_all_1000_steps():
  """In DDPM alpha^2 is the product of 1 - beta (Ho et al. 2020)."""
  alpha2 = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
  t = jnp.arange(1, 1001) / 1000
  schedule = LinearBeta()
  np.testing.assert_allclose(schedule.alpha(t) ** 2, alpha2, rtol=2e-5)
  np.testing.assert_allclose(schedule.sigma(t) ** 2, 1 - alpha2, rtol=2e-5)
  np.testing.assert_allclose(
    schedule.logsnr(t), np.log(alpha2 / (1 - alpha2)), rtol=1e-5, atol=2e-5
  )


def test_betas_of_power_2_are_squares_of_a_linear_range():
  """Latent diffusion uses betas linspace(sqrt(min), sqrt(max))^2."""
  betas = LinearBeta(beta_min=0.00085, beta_max=0.012, power=2.0).betas()
  roots = np.sqrt(betas)
  np.testing.assert_allclose(np.diff(roots), np.diff(roots)[0], rtol=1e-9)
  np.testing.assert_allclose(betas[[0, -1]], [0.00085, 0.012], rtol=1e-9)


def test_cosine_beta_agrees_with_the_squared_cosine_of_its_paper():
  """By Nichol 2021, Eq. 17, alpha^2 = f(t) / f(0) until beta is capped."""
  schedule = CosineBeta()
  t = np.arange(1, 990) / 1000
  f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
  alpha2 = f / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
  got = schedule.alpha(jnp.asarray(t, jnp.float32)) ** 2
  np.testing.assert_allclose(got, alpha2, rtol=1e-4)
  assert schedule.betas().max() == 0.999
  assert schedule.alpha(jnp.ones(1))[0] > 0


def test_edm_agrees_with_the_levels_of_its_paper():
  """Computes N + 1 levels by Eq. 5 of Karras et al. 2022."""
  schedule, num_steps = EDM(), 18
  i = np.arange(num_steps + 1)
  high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
  levels = (high + i / num_steps * (low - high)) ** 7
  t = jnp.asarray((num_steps - i) / num_steps, jnp.float32)
  np.testing.assert_allclose(schedule.sigma(t), levels, rtol=5e-6)
  np.testing.assert_array_equal(schedule.alpha(t), 1)
  assert schedule.sigma(t)[0] == pytest.approx(80, rel=5e-6)
  assert schedule.sigma(t)[-1] == pytest.approx(0.002, rel=5e-6)


def test_rectified_flow_is_linear_in_time_and_clipped_at_both_ends():
  schedule, t = RectifiedFlow(), jnp.linspace(0.01, 0.99, 50)
  np.testing.assert_array_equal(schedule.sigma(t), t)
  np.testing.assert_array_equal(schedule.alpha(t), 1 - t)
  ends = jnp.array([0.0, 1.0])
  np.testing.assert_allclose(schedule.sigma(ends), [1e-5, 1], atol=1.1e-5)
  np.testing.assert_allclose(schedule.alpha(ends), [1, 1e-5], atol=1.1e-5)
  assert jnp.all(schedule.alpha(ends) > 0)


@pytest.mark.parametrize("base", [Cosine(), LinearBeta()])
def test_shifted_adds_a_constant_to_the_logsnr(base):
  schedule = Shifted(base=base, image_size=256)
  t = jnp.linspace(0, 1, 33)
  expected = np.asarray(base.logsnr(t), np.float64) + 2 * np.log(64 / 256)
  np.testing.assert_allclose(schedule.logsnr(t), expected, rtol=1e-6, atol=1e-6)
  ratio = schedule.alpha(t) / schedule.sigma(t)
  np.testing.assert_allclose(2 * np.log(ratio), expected, rtol=1e-5, atol=1e-5)
  same = Shifted(base=base, image_size=64)
  np.testing.assert_allclose(same.alpha(t), base.alpha(t), rtol=1e-5)


@pytest.mark.parametrize(
  ("make", "match"),
  [
    (lambda: Cosine(logsnr_min=3.0, logsnr_max=3.0), "logsnr_min is 3.0"),
    (lambda: LinearBeta(num_steps=1), "num_steps is 1"),
    (lambda: LinearBeta(beta_min=0.1), "beta_min is 0.1"),
    (lambda: LinearBeta(power=0.0), "power is 0.0"),
    (lambda: EDM(sigma_min=0.0), "sigma_min is 0.0"),
    (lambda: EDM(sigma_max=0.001), "sigma_max is 0.001"),
    (lambda: RectifiedFlow(margin=0.0), "margin is 0.0"),
    (lambda: RectifiedFlow(margin=0.5), "margin is 0.5"),
    (lambda: Shifted(base=EDM(), image_size=64), "not EDM"),
    (lambda: Shifted(base=RectifiedFlow(), image_size=64), "not RectifiedFlow"),
    (lambda: Shifted(base=Cosine(), image_size=0), "image_size is 0"),
  ],
)
def test_invalid_fields_are_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()
