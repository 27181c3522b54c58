import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.diffusion.prediction import from_x0
from diffdistill.diffusion.timesteps import grid_time
from diffdistill.sampling import SAMPLERS
from diffdistill.sampling.ddim import DDIM
from diffdistill.sampling.sampler import Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diary(Sampler):
  """A sampler that writes the times (t, s) of each step into the image."""

  def step(self, model, x_t, memory, t, s, key, num_steps):
    x_t = jnp.roll(x_t, -1, axis=2)
    return x_t.at[:, 0, -1].set(jnp.stack([t, s], axis=-1)), memory


def never(x_t, t, s=None):
  raise AssertionError("the diary calls no denoiser")


@pytest.mark.parametrize("num_steps", [1, 3, 5, 100, 4096])
def test_uniform_times_are_exactly_the_float32_quotients(toys, num_steps):
  """Samplers visit exactly the times i / N that losses draw in training."""
  sampler = Diary(process=toys("cosine").process)
  x = jnp.zeros((1, 1, num_steps, 2))
  key = jax.random.key(0)
  sample = jax.jit(lambda x, n: sampler(never, x, key, n))
  times = np.asarray(sample(x, num_steps))[0, 0]
  i = np.arange(num_steps, -1, -1, dtype=np.float32)
  expected = i / np.float32(num_steps)
  np.testing.assert_array_equal(times[:, 0], expected[:-1])
  np.testing.assert_array_equal(times[:, 1], expected[1:])


@pytest.mark.parametrize(("grid", "power"), [("uniform", 1), ("quadratic", 2)])
@pytest.mark.parametrize("num_steps", [1, 100])
def test_first_time_scales_every_time_of_the_grid(toys, grid, power, num_steps):
  sampler = Diary(process=toys("linear").process, grid=grid, first_time=0.8)
  x = jnp.zeros((1, 1, num_steps, 2))
  times = np.asarray(sampler(never, x, jax.random.key(0), num_steps))[0, 0]
  expected = 0.8 * (np.arange(num_steps, -1, -1) / num_steps) ** power
  np.testing.assert_allclose(times[:, 0], expected[:-1], rtol=1e-6)
  np.testing.assert_allclose(times[:, 1], expected[1:], rtol=1e-6)
  # A sampler knows its last step by the target time 0, which must be exact.
  assert times[-1, 1] == 0


def visited(sampler, num_steps):
  """The times (t, s) of each step, in the order of sampling."""
  x = jnp.zeros((1, 1, num_steps, 2))
  sample = jax.jit(lambda x, n: sampler(never, x, jax.random.key(0), n))
  return np.asarray(sample(x, num_steps))[0, 0]


@pytest.mark.parametrize(
  ("grid", "first", "num_steps", "indices"),
  [
    # Luhman & Luhman's code has the first of these grids for LSUN, and the
    # second for CIFAR-10 and CelebA.
    ("uniform_indices", 980, 50, np.arange(0, 1000, 20)),
    (
      *("quadratic_indices", 800, 100),
      np.floor(np.linspace(0, 800**0.5, 100) ** 2),
    ),
    ("uniform_indices", 999, 1000, np.arange(1000)),
    ("uniform_indices", 980, 1, [980]),
    ("quadratic_indices", 800, 1, [800]),
    ("quadratic_indices", 800, 2, [0, 800]),
    ("quadratic_indices", 999, 1000, np.arange(1000) ** 2 // 999),
  ],
)
def test_grids_of_indices_visit_the_times_of_the_expected_indices(
  toys, grid, first, num_steps, indices
):
  """The last step goes from index 0 to the clean image."""
  process = toys("linear").process
  sampler = Diary(process=process, grid=grid, first_time=(first + 1) / 1000)
  times = visited(sampler, num_steps)
  # The times must be bit for bit the quotients that training draws.
  expected = (np.asarray(indices)[::-1] + 1).astype(np.float32)
  np.testing.assert_array_equal(times[:, 0], expected / np.float32(1000))
  np.testing.assert_array_equal(times[:-1, 1], times[1:, 0])
  assert times[-1, 1] == 0


@pytest.mark.parametrize(
  ("grid", "kept"), [("uniform_indices", 0.58), ("uniform", 0.25)]
)
def test_a_grid_that_visits_index_0_keeps_more_fine_detail(toys, grid, kept):
  """Samples pixels of N(0, d^2), d = 2.5 grey levels, by the exact denoiser.

  Each step multiplies x_t by a number. So the sample that starts from the noise
  1 equals the standard deviation of all samples.
  """
  process = toys("linear").process
  variance = (2.5 / 127.5) ** 2

  def denoise(x_t, t, s=None):
    alpha, sigma = process.coefficients(t, x_t)
    x0 = alpha * variance * x_t / (alpha**2 * variance + sigma**2)
    return from_x0(x0, x_t, alpha, sigma)

  sampler = DDIM(process=process, grid=grid, first_time=0.981, clip=False)
  x = sampler.start(jnp.ones((1, 1, 1, 1)), 50)
  spread = sampler(denoise, x, jax.random.key(0), 50)
  assert float(spread[0, 0, 0, 0]) / variance**0.5 == pytest.approx(
    kept, abs=0.01
  )


def test_a_step_between_equal_indices_changes_nothing(toys):
  toy = toys("linear")
  sampler = DDIM(
    process=toy.process, grid="quadratic_indices", first_time=0.801, clip=False
  )
  # The last 4 of 100 steps have the index 0, to which (i - 1)^2 800 / 99^2
  # rounds down.
  times = [float(sampler.time(i, 100)) for i in (4, 3, 2, 1)]
  np.testing.assert_array_equal(times, np.float32([0.001] * 4))
  x = jax.random.normal(jax.random.key(0), (2, 2, 2, 1))
  t = jnp.full(2, times[0])
  prediction = from_x0(
    jnp.full_like(x, 0.3), x, *toy.process.coefficients(t, x)
  )
  np.testing.assert_allclose(
    toy.process.ddim(x, prediction, t, t), x, rtol=1e-6
  )


@pytest.mark.parametrize("grid", ["uniform_indices", "quadratic_indices"])
def test_a_grid_of_indices_begins_with_unit_noise(toys, grid):
  sampler = DDIM(process=toys("linear").process, grid=grid, first_time=0.801)
  noise = jnp.ones((1, 2, 2, 1))
  np.testing.assert_array_equal(sampler.start(noise, 100), noise)


def test_a_grid_of_indices_needs_a_schedule_that_has_them(toys):
  with pytest.raises(ValueError, match=r"the schedule Cosine has no indices"):
    DDIM(process=toys("cosine").process, grid="uniform_indices")
  for time in (0.8005, 0.0001):
    with pytest.raises(ValueError, match=r"no whole index of 1000; pass \(ind"):
      DDIM(
        process=toys("linear").process, grid="uniform_indices", first_time=time
      )


def test_sampling_from_first_time_follows_the_flow_from_there(toys):
  toy = toys("linear")
  z = np.random.default_rng(0).normal(size=(16, 1))
  errors = []
  for num_steps in (32, 128):
    sampler = DDIM(
      process=toy.process, grid="quadratic", first_time=0.5, clip=False
    )
    x = toy.noise(0.5, z)
    actual = sampler(toy.denoise, x, jax.random.key(0), num_steps)
    errors.append(np.abs(actual[:, 0, 0] - toy.flow(x, 0.5)).max())
  # DDIM is of first order: 4 times the steps make the error 4 times smaller.
  assert errors[1] < errors[0] / 3
  assert errors[1] < 0.01


@pytest.mark.parametrize("kind", SAMPLERS)
def test_one_compilation_serves_every_number_of_steps(toys, kind):
  toy, traces = toys("cosine", "mixture"), []
  sampler = SAMPLERS[kind](process=toy.process)

  @jax.jit
  def sample(x, key, num_steps):
    traces.append(kind)
    return sampler(toy.denoise, x, key, num_steps)

  x = jax.random.normal(jax.random.key(0), (4, 1, 1, 2))
  key = jax.random.key(1)
  results = [np.asarray(sample(x, key, jnp.int32(n))) for n in (1, 2, 5, 64)]
  assert len(traces) == 1
  for result in results:
    assert np.all(np.isfinite(result))
    assert np.abs(result).max() <= 1
  # num_steps changes the samples of every sampler except one_step.
  same = np.array_equal(results[1], results[2])
  assert same == (kind == "one_step")
  eager = sampler(toy.denoise, x, key, 2)
  np.testing.assert_allclose(eager, results[1], atol=1e-5)


def test_clip_bounds_x0_in_every_step_and_recomputes_eps(toys):
  process = toys("cosine").process
  alpha_s, sigma_s = toys("cosine").coefficients(0.25)
  alpha_t, sigma_t = toys("cosine").coefficients(0.5)

  def denoise(x_t, t, s=None):
    x0 = jnp.full_like(x_t, 3.0)
    return from_x0(x0, x_t, *process.coefficients(t, x_t))

  x, t, s = jnp.full((1, 1, 1, 1), 0.4), jnp.full(1, 0.5), jnp.full(1, 0.25)
  for clip, x0 in ((True, 1.0), (False, 3.0)):
    sampler = DDIM(process=process, clip=clip)
    x_s, _ = sampler.step(denoise, x, (), t, s, jax.random.key(0), jnp.int32(4))
    expected = alpha_s * x0 + sigma_s * (0.4 - alpha_t * x0) / sigma_t
    assert float(x_s[0, 0, 0, 0]) == pytest.approx(expected, abs=1e-5)
    end = sampler(denoise, x, jax.random.key(0), 4)
    assert float(end[0, 0, 0, 0]) == x0


def test_an_unknown_grid_and_an_invalid_first_time_are_refused(toys):
  with pytest.raises(ValueError, match="grid is 'linear'; pass one of uniform"):
    DDIM(process=toys("cosine").process, grid="linear")
  for time in (0.0, -0.5, 1.01, float("nan")):
    with pytest.raises(ValueError, match=r"first_time is .*; pass a value in"):
      DDIM(process=toys("cosine").process, first_time=time)
  with pytest.raises(ValueError, match=r"first_time is 0\.8, but the karras"):
    DDIM(process=toys("edm").process, grid="karras", first_time=0.8)


@pytest.mark.parametrize("grid", ["uniform", "quadratic", "karras"])
@pytest.mark.parametrize("name", ["cosine", "edm", "flow"])
def test_start_scales_noise_by_sigma_of_the_first_time(toys, name, grid):
  """The Karras grid may begin below t = 1, where sigma is smaller."""
  process = toys(name).process
  sampler = Diary(process=process, grid=grid)
  first = grid_time(grid, process.schedule, 5, 5)
  start = sampler.start(jnp.ones((1, 1, 1, 1)), 5)
  assert float(start[0, 0, 0, 0]) == float(process.schedule.sigma(first))
  if (name, grid) == ("flow", "karras"):
    assert float(first) == pytest.approx(80 / 81, rel=1e-5)
  if grid != "karras":
    sampler = Diary(process=process, grid=grid, first_time=0.6)
    start = sampler.start(jnp.ones((1, 1, 1, 1)), 5)
    sigma = toys(name).coefficients(0.6)[1]
    assert float(start[0, 0, 0, 0]) == pytest.approx(sigma, rel=1e-6)
