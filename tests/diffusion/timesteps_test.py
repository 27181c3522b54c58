import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.diffusion.schedule import (
  EDM,
  Cosine,
  RectifiedFlow,
)
from diffdistill.diffusion.timesteps import (
  DRAWS,
  GRIDS,
  LogitNormal,
  Lognormal,
  Power,
  Uniform,
  draw_continuous,
  draw_discrete,
  draw_pair,
  fraction,
  grid_time,
  per_example,
)
from tests.diffusion.given import SCHEDULES


@functools.cache
def compiled(grid, name):
  """A compiled function from num_steps to grid_time of i = 0 .. 99."""
  one = functools.partial(grid_time, grid, SCHEDULES[name])
  times = jax.jit(jax.vmap(one, in_axes=(0, None)))
  return lambda num_steps: times(np.arange(100), num_steps)


def levels(grid, name, num_steps):
  """Times of a grid, from the time of the first step down to 0."""
  return np.asarray(compiled(grid, name)(num_steps))[num_steps::-1]


def test_discrete_times_are_uniform_and_include_1():
  num_steps, n = 10, 20_000
  t = draw_discrete(jax.random.key(0), n, num_steps)
  i, count = np.unique(np.round(np.asarray(t) * num_steps), return_counts=True)
  np.testing.assert_array_equal(i, np.arange(1, num_steps + 1))
  # The limit 27.9 is the 99.9 % quantile of chi-squared with 9 degrees of
  # freedom, for 10 bins.
  expected = n / num_steps
  assert ((count - expected) ** 2 / expected).sum() < 27.9
  assert t.max() == 1.0


def test_discrete_times_are_exactly_those_of_the_uniform_grid():
  draw = jax.jit(draw_discrete, static_argnums=1)
  for num_steps in (1, 3, 5, 49, 98):
    t = np.unique(draw(jax.random.key(1), 1024, np.int32(num_steps)))[::-1]
    np.testing.assert_array_equal(
      t, levels("uniform", "cosine", num_steps)[:-1]
    )
    # A product with the reciprocal is not exact: 49 * (1 / 49) < 1 in float32.
    assert t[0] == 1


def test_fractions_are_correctly_rounded_under_jit():
  traced = jax.jit(fraction)
  i = np.arange(101, dtype=np.int32)
  for num_steps in (100, 101, 127):
    expected = i.astype(np.float32) / np.float32(num_steps)
    np.testing.assert_array_equal(
      traced(i[: num_steps + 1], np.int32(num_steps)), expected
    )
    np.testing.assert_array_equal(
      fraction(7, num_steps), np.float32(7) / np.float32(num_steps)
    )


def test_continuous_times_fill_the_unit_interval():
  t = draw_continuous(jax.random.key(2), 4096)
  assert t.shape == (4096,)
  assert 0 <= t.min() < 0.01
  assert 0.99 < t.max() < 1
  assert t.mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_falls_to_exactly_zero(grid, name):
  for num_steps in (1, 2, 18):
    t = levels(grid, name, num_steps)
    assert t[-1] == 0
    assert np.all(np.diff(t) < 0)
    # Only the last time may be 0, because a step to 0 ends sampling.
    assert t[-2] > 0
    if grid != "karras":
      assert t[0] == 1


def test_quadratic_times_are_squares_of_uniform_times():
  np.testing.assert_allclose(
    levels("quadratic", "cosine", 10),
    (np.arange(10, -1, -1) / 10) ** 2,
    rtol=1e-6,
  )


@pytest.mark.parametrize("name", SCHEDULES)
def test_karras_grid_agrees_with_the_formula_of_the_paper(name):
  """Computes N levels of sigma / alpha by Eq. 5 of Karras et al. 2022."""
  schedule, num_steps = SCHEDULES[name], 18
  i = np.arange(num_steps)
  high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
  expected = (high + i / (num_steps - 1) * (low - high)) ** 7
  t = jnp.asarray(levels("karras", name, num_steps)[:-1])
  tau = np.asarray(schedule.sigma(t)) / np.asarray(schedule.alpha(t))
  # The tolerance is for times near 0 and 1, where rounding t to float32 changes
  # sigma / alpha noticeably.
  np.testing.assert_allclose(tau, expected, rtol=1e-3)
  # A grid of one step starts at the highest noise.
  np.testing.assert_allclose(levels("karras", name, 1)[0], t[0], rtol=1e-6)


def test_karras_grid_on_edm_has_sigma_min_before_0():
  """The time before the last is sigma_min and not yet 0."""
  t = levels("karras", "edm", 18)
  sigma = EDM().sigma(jnp.asarray(t[-2:]))
  assert t[-2] > 0
  np.testing.assert_allclose(sigma, 0.002, rtol=1e-4)


def test_unknown_grids_are_refused():
  with pytest.raises(ValueError, match="grid is 'cosine'; pass one of uniform"):
    grid_time("cosine", Cosine(), 1, 2)


def test_per_example_repeats_a_time_for_each_image():
  t = per_example(jnp.float32(0.3), jnp.zeros((4, 2, 2, 1)))
  np.testing.assert_array_equal(t, np.full(4, 0.3, np.float32))


# Quantiles of the standard normal distribution.
NORMAL = {0.025: -1.959964, 0.5: 0.0, 0.8413447: 1.0}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("u", NORMAL)
def test_quantiles_of_each_draw_agree_with_closed_forms(name, u):
  schedule, z = SCHEDULES[name], NORMAL[u]

  def quantile(draw):
    return float(draw.quantile(jnp.full(1, u), schedule)[0])

  assert quantile(Uniform()) == pytest.approx(u)
  assert quantile(Power(power=3.0)) == pytest.approx(u**3, rel=1e-5)
  logit = -0.4 + 1.5 * z
  assert quantile(LogitNormal(mean=-0.4, std=1.5)) == pytest.approx(
    1 / (1 + np.exp(-logit)), rel=1e-4
  )
  t = jnp.full(1, quantile(Lognormal(mean=-1.2, std=1.2)))
  tau = float((schedule.sigma(t) / schedule.alpha(t))[0])
  assert np.log(tau) == pytest.approx(-1.2 + 1.2 * z, abs=1e-3)


@pytest.mark.parametrize("kind", DRAWS)
def test_drawn_times_follow_the_quantiles_of_the_draw(kind):
  draw, schedule, n = DRAWS[kind](), RectifiedFlow(), 20_000
  t = draw(jax.random.key(3), n, schedule)
  for u in (0.1, 0.5, 0.9):
    limit = draw.quantile(jnp.full(1, u), schedule)
    # The tolerance is four standard errors of a share.
    error = 4 * (u * (1 - u) / n) ** 0.5
    assert float(jnp.mean(t < limit)) == pytest.approx(u, abs=error)
  ends = draw.quantile(jnp.array([0.0, 1.0]), schedule)
  assert np.isfinite(ends).all()


def test_pairs_have_s_at_most_t_and_the_asked_share_of_equal_times():
  n, draw = 20_000, Power(power=2.0)
  t, s = draw_pair(jax.random.key(4), n, Cosine(), draw, equal=0.25)
  same = np.asarray(t == s)
  assert same.mean() == pytest.approx(0.25, abs=0.015)
  t, s = np.asarray(t), np.asarray(s)
  assert (s <= t).all()
  # For t = u^2, one draw is below u^2 with probability u, so the larger of two
  # draws is below u^2 with probability u^2.
  for u in (0.3, 0.7):
    assert (t[~same] < u**2).mean() == pytest.approx(u**2, abs=0.02)
    assert (s[~same] < u**2).mean() == pytest.approx(2 * u - u**2, abs=0.02)
    assert (t[same] < u**2).mean() == pytest.approx(u, abs=0.03)


def test_the_two_times_of_a_pair_may_have_different_draws():
  late, early = LogitNormal(mean=4.0), LogitNormal(mean=-4.0)
  t, s = draw_pair(jax.random.key(5), 4096, Cosine(), early, late)
  assert float(jnp.median(t)) == pytest.approx(1 / (1 + np.exp(-4)), abs=0.01)
  assert float(jnp.median(s)) == pytest.approx(1 / (1 + np.exp(4)), abs=0.01)


def test_a_std_of_zero_is_refused():
  with pytest.raises(ValueError, match=r"std is 0\.0; pass 0\.01 or more"):
    Lognormal(std=0.0)
