"""Tests that the counted passes of training agree with counts by hand."""

import pytest

from diffdistill.diffusion.guidance import Guidance
from diffdistill.diffusion.process import GaussianProcess
from diffdistill.diffusion.schedule import EDM, Cosine
from diffdistill.objectives.objective import Passes
from diffdistill.sampling.ddim import DDIM
from diffdistill.sampling.heun import Heun
from diffdistill.training.pairs_stage import Pairs
from diffdistill.training.passes import pair_passes, round_passes
from diffdistill.training.stage import Round


def round_of(guided, num_updates=10):
  return Round(
    name="halve/004",
    stage="halve",
    num_updates=num_updates,
    num_steps=4,
    frozen={},
    guided=guided,
  )


def test_a_gradient_and_a_tangent_each_count_as_three_passes():
  assert Passes(forward=5, gradient=7, tangent=11).units == 5 + 21 + 33
  # A derivative by the input costs two units, for the whole network or for a
  # part of it.
  assert Passes(input_gradient=5, input_tangent=7).units == 24
  # The gradient of such a derivative is of two values, so it costs six.
  assert Passes(tangent_gradient=2).units == 12
  assert Passes(trunk=2, trunk_gradient=3, trunk_share=0.5).units == 4
  # Passes of a classifier cost no units, because units count passes of the
  # denoiser.
  assert Passes(classifier=3, classifier_gradient=2).units == 0


@pytest.mark.parametrize("guided", [False, True])
def test_alternating_turns_are_counted_in_their_order(least_squares, guided):
  passes = round_passes(least_squares(), round_of(guided))
  # The student learns in the first turn of the cycle.
  student, auxiliary = 0.5 + 3 * 2 + 3, 2 + guided + 3
  expected = 0
  for updates in range(7):
    assert passes(updates) == expected
    expected += auxiliary if updates % 2 else student


def test_a_turn_of_all_trees_is_counted_once(least_squares):
  class Together(least_squares):
    @property
    def cycle(self):
      return (("student", "auxiliary"),)

    def passes(self, turn, num_steps, guided):
      assert turn == ("student", "auxiliary")
      return Passes(gradient=num_steps)

  passes = round_passes(Together(), round_of(guided=False))
  assert [passes(n) for n in range(3)] == [0, 12, 24]


def test_five_critic_updates_are_counted_for_one_of_the_student(least_squares):
  class Critic(least_squares):
    @property
    def cycle(self):
      return (("auxiliary",),) * 5 + (("student",),)

  passes = round_passes(Critic(), round_of(guided=False))
  student, critic = 0.5 + 3 * 2 + 3, 2 + 3
  assert passes(5) == 5 * critic
  assert passes(6) == 5 * critic + student
  assert passes(20) == 17 * critic + 3 * student


@pytest.mark.parametrize(
  ("sampler", "weight", "guided", "per_pair"),
  [
    (DDIM(process=GaussianProcess(schedule=Cosine())), 0.0, True, 4),
    (DDIM(process=GaussianProcess(schedule=Cosine())), 1.5, True, 8),
    # The teacher of these pairs is a student, whose weights hold the guidance
    # already, so it makes one pass for each step.
    (DDIM(process=GaussianProcess(schedule=Cosine())), 1.5, False, 4),
    (Heun(process=GaussianProcess(schedule=EDM())), 0.0, True, 8),
    (Heun(process=GaussianProcess(schedule=EDM())), 1.5, True, 16),
  ],
)
def test_pairs_cost_the_sampler_steps_of_their_teacher(
  sampler, weight, guided, per_pair
):
  stage = Pairs(
    name="pairs",
    sampler=sampler,
    num_steps=4,
    num_pairs=32,
    held_out=8,
    shard_size=8,
    batch_size=8,
    guidance=Guidance(weight=weight),
  )
  assert pair_passes(stage, round_of(guided), 32) == 40 * per_pair
