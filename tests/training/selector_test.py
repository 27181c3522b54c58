"""Tests that a selector keeps the best weights and ends a stuck round."""

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from diffdistill.training.selection_by_score import Selection, Selector
from diffdistill.training.sharding import Layout

NAN = float("nan")


@pytest.fixture
def selector(tmp_path, mesh_of):
  """selector(...) makes a selector that takes the weights as their score."""

  def make(**fields):
    return Selector(
      Selection(**{"by": "distance", "every": 5, **fields}),
      epath.Path(tmp_path / "student"),
      lambda product: float(product["w"]),
      Layout(mesh=mesh_of(1)),
    )

  return make


def consider(selector, *scores):
  """Scores weights after 5, 10, ... updates, and returns the best weights."""
  for i, score in enumerate(scores, 1):
    given = selector.consider({"w": jnp.float32(score)}, 5 * i)
    assert given == np.float32(score) or np.isnan(given)
  best = selector.best()
  return None if best is None else float(best["w"])


@pytest.mark.parametrize(
  ("scores", "best"),
  [
    ((0.5, 0.25, 0.75), 0.25),
    ((0.25, 0.5), 0.25),
    ((NAN, 0.5, NAN), 0.5),
    ((NAN, NAN), None),
    ((np.inf, 2.0), 2.0),
  ],
)
def test_the_lowest_score_is_kept_and_nan_never(selector, scores, best):
  assert consider(selector(), *scores) == best
  # A new selector must find the best weights on disk.
  assert consider(selector()) == best


def test_of_equal_scores_the_first_is_kept(selector):
  seen = selector(patience=1)
  consider(seen, 0.5, 0.5)
  assert seen.exhausted(10)


def test_scores_are_due_at_their_cadence(selector):
  assert [step for step in range(1, 17) if selector().due(step)] == [5, 10, 15]


@pytest.mark.parametrize("scores", [(0.25, 0.5), (0.5, 0.25, NAN, NAN)])
def test_patience_counts_scores_since_the_best(selector, scores):
  seen = selector(patience=2)
  consider(seen, *scores)
  best = 5 * (1 + int(np.nanargmin(scores)))
  exhausted = [seen.exhausted(step) for step in range(best, best + 16, 5)]
  assert exhausted == [False, False, True, True]
  assert not selector(patience=0).exhausted(10**6)
  # A resumed round repeats updates before the best score; they do not count as
  # updates without progress.
  assert not seen.exhausted(best - 5)


def test_patience_never_ends_a_round_without_a_score(selector):
  seen = selector(patience=1)
  consider(seen, NAN, NAN, NAN)
  assert not seen.exhausted(100)
