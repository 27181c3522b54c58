import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.diffusion.neighbours import (
  EvenNeighbours,
  GridNeighbours,
  RatioNeighbours,
  noise_level,
)
from diffdistill.diffusion.schedule import EDM
from diffdistill.diffusion.timesteps import DRAWS
from tests.diffusion.given import SCHEDULES

# One schedule each that preserves the variance, explodes it, or is straight.
every_schedule = pytest.mark.parametrize("name", ["cosine", "edm", "flow"])


def test_the_steps_of_the_grid_double_in_equal_parts_of_the_training():
  progress = jnp.array([0, 0.124, 0.126, 0.251, 0.5, 0.874, 0.876, 0.9999])
  steps = jax.vmap(GridNeighbours().steps)(progress)
  np.testing.assert_array_equal(steps, [10, 10, 20, 40, 160, 640, 1280, 1280])
  # The last number need not be a power of 2 times the first.
  grid = GridNeighbours(first=10, last=50)
  steps = jax.vmap(grid.steps)(jnp.array([0, 0.5, 0.99]))
  np.testing.assert_array_equal(steps, [10, 20, 50])
  assert float(GridNeighbours(first=7, last=7).steps(jnp.float32(0.9))) == 7


@every_schedule
@pytest.mark.parametrize("curve", ["karras", "uniform"])
def test_places_on_the_grid_are_inverse_to_times(name, curve):
  grid, schedule = GridNeighbours(curve=curve), SCHEDULES[name]
  u = jnp.linspace(0.0, 1.0, 33)[1:]
  t = grid.time(u, schedule)
  np.testing.assert_allclose(grid.place(t, schedule), u, atol=2e-3)
  assert float(grid.time(jnp.zeros(1), schedule)[0]) == 0
  if curve == "karras":
    high = float(jnp.exp(-0.5 * schedule.logsnr(t[-1:]))[0])
    ends = jnp.exp(-0.5 * schedule.logsnr(jnp.ones(1)))
    assert high == pytest.approx(min(80, float(ends[0])), rel=1e-3)


def test_pairs_of_the_grid_have_the_chances_of_ict():
  """Song & Dhariwal 2023, section 3.5: differences of erf, normalised."""
  schedule, n = EDM(), 40_000
  draw = jax.jit(
    lambda key: GridNeighbours()(key, n, schedule, jnp.float32(0.0))
  )
  t, s = draw(jax.random.key(0))
  levels = np.asarray(noise_level(schedule, t), np.float64)
  root = (0.002 ** (1 / 7), 80 ** (1 / 7))
  edges = np.linspace(*root, 11) ** 7
  mass = [math.erf((math.log(edge) + 1.1) / (2 * 2**0.5)) for edge in edges]
  expected = np.diff(mass) / (mass[-1] - mass[0])
  j = np.abs(levels[:, None] - edges[1:]).argmin(1)
  found = np.bincount(j, minlength=10) / n
  # The tolerance is four standard deviations of a frequency.
  np.testing.assert_allclose(
    found, expected, atol=4 * (expected.max() / n) ** 0.5
  )
  np.testing.assert_allclose(levels, edges[1:][j], rtol=1e-4)
  lower = np.asarray(noise_level(schedule, s))
  np.testing.assert_allclose(lower[j > 0], edges[j[j > 0]], rtol=1e-4)
  np.testing.assert_array_equal(lower[j == 0], 0)


def test_without_a_draw_every_step_of_the_grid_is_equally_likely():
  grid, schedule, n = EvenNeighbours(), EDM(), 40_000
  t, _ = grid(jax.random.key(0), n, schedule, jnp.float32(0.0))
  j = np.round(10 * np.asarray(grid.place(t, schedule))).astype(int)
  # The tolerance is four standard deviations of a frequency.
  found = np.bincount(j, minlength=11)[1:] / n
  np.testing.assert_allclose(found, 0.1, atol=4 * (0.09 / n) ** 0.5)


@every_schedule
@pytest.mark.parametrize("stage", [0, 7])
def test_the_ratio_of_noise_levels_is_that_of_ect(name, stage):
  schedule, neighbours = SCHEDULES[name], RatioNeighbours()
  t = schedule.time(-2 * jnp.log(jnp.array([0.05, 0.6, 3.0, 20.0])))
  progress = jnp.float32((stage + 0.5) / 8)
  s = neighbours.earlier(t, schedule, progress)
  tau = np.exp(-0.5 * np.asarray(schedule.logsnr(t), np.float64))
  gap = 2.0 ** -(stage + 1) * (1 + 8 / (1 + np.exp(tau)))
  expected = tau * np.maximum(1 - gap, 0)
  found = np.asarray(noise_level(schedule, s))
  # A time near 1 has few digits for its distance from 1.
  np.testing.assert_allclose(found, expected, rtol=2e-3)
  assert (np.asarray(s) == 0).tolist() == (gap >= 1).tolist()


def test_the_gap_of_ect_has_a_least_size():
  schedule, t = EDM(), jnp.full(1, 0.9)
  neighbours = RatioNeighbours(stages=100, least=0.01, k=0.0)
  s = neighbours.earlier(t, schedule, jnp.float32(0.999))
  ratio = noise_level(schedule, s) / noise_level(schedule, t)
  assert float(ratio[0]) == pytest.approx(0.99, rel=1e-5)


@pytest.mark.parametrize("kind", DRAWS)
@every_schedule
def test_the_share_of_draws_is_inverse_to_their_quantile(kind, name):
  draw, schedule = DRAWS[kind](), SCHEDULES[name]
  u = jnp.linspace(0.05, 0.95, 19)
  found = draw.share(draw.quantile(u, schedule), schedule)
  np.testing.assert_allclose(found, u, atol=1e-4)


def test_a_wrong_grid_is_refused():
  with pytest.raises(ValueError, match="curve is 'cubic'; pass one of karras"):
    GridNeighbours(curve="cubic")
  with pytest.raises(ValueError, match=r"first is 9 and last is 8; pass first"):
    GridNeighbours(first=9, last=8)
  with pytest.raises(ValueError, match=r"q is 1\.0; pass more than 1"):
    RatioNeighbours(q=1.0)
