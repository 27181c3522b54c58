"""Tests that moment matching draws the right times, also at the ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.diffusion.schedule import Cosine, RectifiedFlow
from diffdistill.networks.analytic import GaussianMixture
from diffdistill.objectives import moment_draws
from diffdistill.objectives.moment_draws import (
  TIMES,
  draw,
  draw_times,
)
from diffdistill.objectives.moment_matching import (
  MomentMatching,
  ParameterMomentMatching,
)
from tests.objectives.given import (
  MIXTURE,
  batch_of,
)
from tests.objectives.moment_given import (
  compiled_gradient,
  images,
  objective,
)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 8, 1000])
@pytest.mark.parametrize("times", TIMES)
def test_times_are_at_most_one_step_apart(times, num_steps):
  n = 2**14
  run = jax.jit(draw_times, static_argnums=(0, 2))
  key = jax.random.key(num_steps)
  t, s = map(np.asarray, run(times, key, n, jnp.int32(num_steps)))
  assert s.min() >= 0
  assert t.max() == 1
  assert np.all(s <= t)
  # The tolerance is for the rounding of two float32 times, 6e-8 each.
  assert np.max(t - s) <= 1 / num_steps + 1.2e-7
  inner = (t - s)[s < 1 - 1 / num_steps] if times == "continuous" else t - s
  if inner.size:
    # t - s must be uniform. The tolerance is four standard errors of its mean
    # and of its mean square.
    error = 4 / np.sqrt(inner.size)
    u = inner.astype(np.float64) * num_steps
    assert np.mean(u) == pytest.approx(1 / 2, abs=error / 12**0.5)
    assert np.mean(u**2) == pytest.approx(1 / 3, abs=error * (4 / 45) ** 0.5)
  # Continuous times s have the mean 1/2. On the grid, the middles of the steps
  # that end at t have this mean.
  whole = s if times == "continuous" else t - 0.5 / num_steps
  assert np.mean(whole) == pytest.approx(0.5, abs=4 / np.sqrt(12 * n))
  if times == "grid":
    i = np.round(t * num_steps)
    assert i.min() == 1
    np.testing.assert_array_equal(t, i / np.float32(num_steps))


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()])
def test_the_ends_of_time_are_finite(monkeypatch, schedule):
  """At s = 0, x_s is the image x0; at s = t, x_s is the noisy image x_t."""
  t, s = jnp.array([0.25, 1.0, 0.5, 0.0]), jnp.array([0.0, 1.0, 0.5, 0.0])
  monkeypatch.setattr(
    moment_draws, "draw_times", lambda mode, key, n, k: (t[:n], s[:n])
  )
  exact = GaussianMixture(schedule=schedule)
  student = MIXTURE | {"std": jnp.array([0.4, 0.1])}
  for kind, rows in ((MomentMatching, 4), (ParameterMomentMatching, 8)):
    goal = objective(kind, exact, schedule)
    trees = (student, student, MIXTURE)
    (loss, metrics), grad = compiled_gradient(
      goal, trees, images(rows), jax.random.key(0)
    )
    assert loss != 0
    for leaf in jax.tree.leaves((loss, metrics, grad)):
      assert np.all(np.isfinite(leaf))
  goal = objective(MomentMatching, exact, schedule)
  drawn = jax.jit(
    lambda batch, key: draw(
      goal.denoiser, student, batch, "grid", "snr", 4, key, False
    )
  )(batch_of(images(4)), jax.random.key(0))
  x0, x_s = np.asarray(drawn.x0), np.asarray(drawn.x_s)
  np.testing.assert_array_equal(x_s[[0, 3]], x0[[0, 3]])
  assert not np.any(np.isclose(x_s[[1, 2]], x0[[1, 2]]))
