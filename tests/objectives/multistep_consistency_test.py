"""Tests multistep consistency models against the teacher's own sampler."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffdistill.objectives import multistep_consistency
from diffdistill.objectives.multistep_consistency import (
  MultistepConsistency,
  Times,
  draw_times,
)
from diffdistill.sampling.ancestral import Ancestral
from diffdistill.sampling.ddim import DDIM
from tests.objectives.trajectories import (
  GAUSSIAN,
  SCHEDULES,
  Lines,
  denoiser_of,
  fixed_point,
)

PARTS = 4  # the teacher's steps in each segment


@dataclasses.dataclass(frozen=True)
class Steps:
  """The times of a grid, as the tests of trajectories read them."""

  times: tuple


@dataclasses.dataclass(frozen=True, kw_only=True)
class InTurn(MultistepConsistency):
  """Multistep consistency whose tests know the times of the grid."""

  neighbours: Steps


def goal_of(name, num_steps):
  total = num_steps * PARTS
  times = tuple((np.arange(total + 1) / np.float32(total)).tolist())
  denoiser = denoiser_of(Lines(SCHEDULES[name], times), SCHEDULES[name])
  return InTurn(
    denoiser=denoiser,
    sampler=DDIM(process=denoiser.process, clip=False),
    weighting="constant",
    first=total,
    last=total,
    neighbours=Steps(times),
  )


def solved(name, num_steps, patch):
  """The objective, and the student at which its gradient is 0."""
  goal = goal_of(name, num_steps)
  # Every step of the grid has 8 rows, see `signs`.
  i = np.repeat(np.arange(1, num_steps * PARTS + 1), 8)
  t, s = (jnp.array(goal.neighbours.times)[k] for k in (i, i - 1))
  e = jnp.asarray((i - 1) // PARTS / num_steps, jnp.float32)
  every = Times(t=t, s=s, e=e)
  patch.setattr(multistep_consistency, "draw_times", lambda *_: every)
  student = fixed_point(goal, patch, num_steps=num_steps)
  return goal, jnp.asarray(student, jnp.float32)


def difference(goal, student, num_steps):
  """The largest difference between k steps and the teacher's k PARTS steps."""
  key, model = jax.random.key(0), goal.denoiser.bind
  z = jnp.linspace(-2.0, 2.0, 5).reshape(-1, 1, 1, 1)
  x = goal.sampler.start(z, num_steps)
  few = goal.sampler(model(student), x, key, num_steps)
  many = goal.sampler(model(GAUSSIAN), x, key, num_steps * PARTS)
  return float(jnp.abs(few - many).max())


@pytest.mark.parametrize(
  ("name", "num_steps"),
  [("exploding", 2), ("preserving", 1), ("preserving", 2), ("flow", 4)],
)
def test_k_steps_of_the_fixed_point_equal_all_steps_of_the_teacher(
  name, num_steps, monkeypatch
):
  """The teacher is Gaussian, so its DDIM steps are also the regression."""
  goal, student = solved(name, num_steps, monkeypatch)
  # The error is that of float32.
  assert difference(goal, student, num_steps) < 1e-4


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_with_another_share_of_the_student_s_x0_it_is_wrong(share, monkeypatch):
  """The target is then the teacher's x0 alone, or the student's alone."""
  monkeypatch.setattr(
    multistep_consistency, "second_weight", lambda *_: jnp.full(64, share)
  )
  goal, student = solved("preserving", 2, monkeypatch)
  assert difference(goal, student, 2) > 1e-2


def test_times_are_within_a_segment_on_the_grid_of_the_sampler():
  num_steps, parts, n = 3, 5, 4096
  draw = jax.jit(lambda key, k, m: draw_times(key, n, k, m))
  t, s, e = map(np.asarray, draw(jax.random.key(0), num_steps, parts))
  i = np.round(t * 15).astype(int)
  # They are the float32 quotients, which the sampler visits too.
  np.testing.assert_array_equal(t, i.astype(np.float32) / np.float32(15))
  np.testing.assert_array_equal(s, (i - 1).astype(np.float32) / np.float32(15))
  j = (i - 1) // parts
  np.testing.assert_array_equal(e, j.astype(np.float32) / np.float32(3))
  assert (s >= e).all()
  assert (s == e).mean() == pytest.approx(1 / parts, abs=0.03)
  # The tolerance is four standard deviations of a frequency.
  found = np.bincount(i, minlength=16)[1:] / n
  np.testing.assert_allclose(found, 1 / 15, atol=4 * (1 / 15 / n) ** 0.5)


def test_the_steps_of_the_teacher_grow_from_64_to_1280():
  goal = dataclasses.replace(goal_of("flow", 1), first=64, last=1280)

  def parts(num_steps, progress):
    return int(goal.parts(jnp.int32(num_steps), jnp.float32(progress)))

  assert [parts(4, p) for p in (0, 0.25, 0.5, 0.9)] == [16, 72, 320, 320]
  assert parts(1, 0) == 64
  # Each segment has one step at least.
  assert parts(1000, 0) == 1


def test_another_sampler_and_wrong_steps_are_refused():
  goal = goal_of("flow", 1)
  process = goal.denoiser.process
  with pytest.raises(ValueError, match="a multistep consistency student is"):
    dataclasses.replace(goal, sampler=Ancestral(process=process))
  with pytest.raises(ValueError, match=r"first is 8 and last is 4; pass first"):
    dataclasses.replace(goal, first=8)
