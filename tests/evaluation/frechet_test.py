"""Distances equal closed forms that are computed in another way."""

import json
import pathlib
import runpy

import hypothesis
import numpy as np
import pytest
import scipy.linalg
from hypothesis import strategies as st

from diffdistill.evaluation.frechet import (
  Gaussian,
  Moments,
  frechet_distance,
  inception_score,
  precision_recall,
)

HERE = pathlib.Path(__file__).parent
MAKER = runpy.run_path(str(HERE / "make_golden_metrics.py"))
GOLDEN = json.loads(MAKER["GOLDEN"].read_text())


def gaussian(mean, cov):
  """Moments whose `mean` and `cov` are exactly these."""
  count = 11
  return Moments(
    count=count,
    mean=np.asarray(mean, np.float64),
    scatter=np.asarray(cov, np.float64) * (count - 1),
  )


def random_cov(rng, dim, rank):
  root = rng.normal(size=(dim, rank))
  return root @ root.T


def test_diagonal_gaussians_have_the_sum_of_squares_of_std_gaps():
  std_a, std_b = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 0.5])
  a = gaussian([0, 1, 2], np.diag(std_a**2))
  b = gaussian([1, 1, 0], np.diag(std_b**2))
  expected = 5 + ((std_a - std_b) ** 2).sum()
  assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_full_rank_gaussians_agree_with_sqrtm():
  rng = np.random.default_rng(1)
  cov_a, cov_b = random_cov(rng, 5, 9), random_cov(rng, 5, 9)
  mean_a, mean_b = rng.normal(size=(2, 5))
  root = np.real(scipy.linalg.sqrtm(cov_a @ cov_b))
  expected = ((mean_a - mean_b) ** 2).sum()
  expected += np.trace(cov_a + cov_b - 2 * root)
  a, b = gaussian(mean_a, cov_a), gaussian(mean_b, cov_b)
  assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
  assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e10])
def test_small_eigenvalues_keep_their_digits(condition):
  # With C_b = C_a C_a, both commute, so Tr (C_a C_b)^(1/2) = Tr C_a^(3/2).
  rng = np.random.default_rng(10)
  basis = np.linalg.qr(rng.normal(size=(60, 60)))[0]
  values = condition ** -np.linspace(0, 1, 60)
  a = gaussian(np.zeros(60), (basis * values[None]) @ basis.T)
  b = gaussian(np.zeros(60), (basis * values[None] ** 2) @ basis.T)
  expected = values.sum() + (values**2).sum() - 2 * (values**1.5).sum()
  # The tolerance is for C_b, whose least entries are rounded to 1e-16.
  assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
  singular = np.linalg.svd(a.factor.T @ b.factor, compute_uv=False).sum()
  roots = (np.trace(a.cov + b.cov) - frechet_distance(a, b)) / 2
  assert roots == pytest.approx(singular, rel=1e-13)


def test_the_factor_of_a_reference_is_computed_once(monkeypatch):
  calls, eigh = [], np.linalg.eigh
  monkeypatch.setattr(
    np.linalg, "eigh", lambda cov: calls.append(1) or eigh(cov)
  )
  rng = np.random.default_rng(11)
  reference = gaussian(np.zeros(4), random_cov(rng, 4, 9))
  for _ in range(3):
    row = gaussian(np.ones(4), random_cov(rng, 4, 9))
    assert frechet_distance(reference, row) > 0
  assert len(calls) == 1
  again = Gaussian(mean=reference.mean, cov=reference.cov)
  assert frechet_distance(again, row) == frechet_distance(reference, row)


def test_low_rank_gaussians_keep_full_accuracy():
  # Both covariances have rank one, so Tr (C_a C_b)^(1/2) = |u . v|.
  rng = np.random.default_rng(2)
  u, v = rng.normal(size=(2, 40))
  a = gaussian(np.zeros(40), np.outer(u, u))
  b = gaussian(np.zeros(40), np.outer(v, v))
  expected = u @ u + v @ v - 2 * abs(u @ v)
  assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
  assert frechet_distance(a, a) < 1e-10


@pytest.mark.parametrize("name", MAKER["CASES"])
def test_the_frechet_distance_equals_that_of_pytorch_fid(name):
  real, generated = MAKER["features"](name)
  empty = Moments.empty(MAKER["DIM"])
  a, b = empty.update(real), empty.update(generated)
  # pytorch-fid also computes in float64. The tolerance is for its other method
  # to find the matrix root.
  expected = pytest.approx(GOLDEN[name]["fid"], rel=1e-6)
  assert frechet_distance(a, b) == expected
  # The distance needs only a mean and a covariance.
  given = Gaussian(mean=a.mean, cov=a.cov)
  assert frechet_distance(given, b) == frechet_distance(a, b)


@pytest.mark.parametrize("name", MAKER["CASES"])
def test_precision_and_recall_equal_those_of_torch_fidelity(name):
  real, generated = MAKER["features"](name)
  expected = GOLDEN[name]["precision"], GOLDEN[name]["recall"]
  # The tolerance is for torch-fidelity's float32, which is exact to 1e-7.
  assert precision_recall(real, generated) == pytest.approx(expected, abs=1e-6)


def test_the_inception_score_equals_that_of_torch_fidelity():
  odds = np.exp(MAKER["logits"]().astype(np.float64))
  score = inception_score(odds / odds.sum(axis=1, keepdims=True))
  expected = GOLDEN["inception_score"]
  assert score == pytest.approx(
    (expected["inception_score_mean"], expected["inception_score_std"]),
    rel=1e-6,
  )


def test_a_set_is_at_distance_zero_from_itself():
  rows = np.random.default_rng(3).normal(size=(6, 20)) + 100
  moments = Moments.empty(20).update(rows)
  assert 0 <= frechet_distance(moments, moments) < 1e-10


def test_sets_that_cannot_be_compared_are_refused():
  two, three = gaussian(np.zeros(2), np.eye(2)), gaussian(np.ones(3), np.eye(3))
  with pytest.raises(ValueError, match="2 features with 3"):
    frechet_distance(two, three)
  with pytest.raises(ValueError, match="at least 2 vectors, got 1"):
    frechet_distance(Moments.empty(2).update(np.ones((1, 2))), two)
  with pytest.raises(ValueError, match="NaN or infinite"):
    frechet_distance(gaussian([0, 0], [[np.nan, 0], [0, 1]]), two)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(
  cuts=st.lists(st.integers(0, 30), max_size=6),
  meet=st.integers(0, 30),
  offset=st.sampled_from([0.0, 1e4]),
)
def test_moments_do_not_depend_on_how_a_stream_is_cut(cuts, meet, offset):
  rows = np.random.default_rng(4).normal(size=(30, 3)) + offset
  streamed = Moments.empty(3)
  for part in np.split(rows, sorted(cuts)):
    streamed = streamed.update(part)
  merged = Moments.empty(3).update(rows[:meet])
  merged = merged.merge(Moments.empty(3).update(rows[meet:]))
  for moments in (streamed, merged):
    assert moments.count == 30
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-12)
    # The tolerance is wide, because an offset of 1e4 leaves 12 of 16 digits.
    np.testing.assert_allclose(
      moments.cov, np.cov(rows, rowvar=False), rtol=1e-9, atol=1e-9
    )


def test_moments_of_float32_features_are_float64():
  rows = np.full((1000, 1), 0.1, np.float32) + np.float32(1e3)
  moments = Moments.empty(1).update(rows)
  assert moments.mean.dtype == np.float64
  np.testing.assert_allclose(moments.mean, rows[0], rtol=1e-14)


def test_inception_score_of_known_predictions():
  assert inception_score(np.full((20, 4), 0.25)) == (1.0, 0.0)
  sure = np.eye(4)[np.arange(40) % 4]
  assert inception_score(sure, splits=10) == pytest.approx((4, 0))
  # Each half has one class, so there is no diversity within a split.
  assert inception_score(np.sort(sure, axis=0), splits=1)[0] > 1
  halves = np.repeat(np.eye(2), 10, axis=0)
  assert inception_score(halves, splits=2) == pytest.approx((1, 0))
  assert inception_score(halves, splits=1) == pytest.approx((2, 0))


def test_inception_score_is_the_exponential_of_mutual_information():
  p = np.array([[0.9, 0.1], [0.3, 0.7]])
  marginal = np.array([0.6, 0.4])
  divergence = np.mean([(row * np.log(row / marginal)).sum() for row in p])
  score, deviation = inception_score(p, splits=1)
  assert score == pytest.approx(np.exp(divergence))
  assert deviation == 0


def test_the_inception_score_needs_an_image_in_each_split():
  with pytest.raises(ValueError, match=r"10 splits .* got 9"):
    inception_score(np.full((9, 2), 0.5))


def clusters(rng, centres, each=40):
  rows = [rng.normal(size=(each, 2)) * 0.1 + centre for centre in centres]
  return np.concatenate(rows)


def test_identical_sets_have_precision_and_recall_one():
  rows = np.random.default_rng(5).normal(size=(50, 3)) + 1e3
  assert precision_recall(rows, rows) == (1, 1)
  # A repeated point has a ball of radius 0, which holds the copies.
  few = np.random.default_rng(9).normal(size=(20, 333))
  ours, theirs = few.repeat(7, axis=0), few.repeat(5, axis=0)
  assert precision_recall(ours, theirs) == (1, 1)


def test_disjoint_sets_have_precision_and_recall_zero():
  rows = np.random.default_rng(6).normal(size=(50, 3))
  assert precision_recall(rows, rows + 100) == (0, 0)


def test_a_missing_mode_lowers_recall_and_not_precision():
  rng = np.random.default_rng(7)
  centres = np.array([[0.0, 0.0], [10.0, 0.0]])
  real = clusters(rng, centres)
  precision, recall = precision_recall(real, clusters(rng, centres[:1], 80))
  assert precision > 0.85
  assert 0.35 < recall <= 0.5
  # An extra mode lowers only precision.
  swapped = precision_recall(clusters(rng, centres[:1], 80), real)
  assert swapped[0] <= 0.5
  assert swapped[1] > 0.85


@pytest.mark.parametrize("offset", [0.0, 1e7])
def test_radii_and_chunks_agree_with_brute_force(monkeypatch, offset):
  rng = np.random.default_rng(8)
  real = rng.normal(size=(23, 2)) + offset
  generated = rng.normal(size=(19, 2)) + 0.5 + offset

  def share(points, centres, k):
    gaps = np.linalg.norm(centres[:, None] - centres[None, :], axis=-1)
    radii = np.sort(gaps, axis=1)[
      :, k
    ]  # Column 0 is the distance of the point to itself.
    gaps = np.linalg.norm(points[:, None] - centres[None, :], axis=-1)
    return (gaps <= radii[None, :]).any(axis=1).mean()

  expected = (share(generated, real, 2), share(real, generated, 2))
  assert precision_recall(real, generated, k=2) == pytest.approx(expected)
  monkeypatch.setattr("diffdistill.evaluation.frechet._CHUNK", 7)
  assert precision_recall(real, generated, k=2) == pytest.approx(expected)


def test_too_few_points_for_a_ball_are_refused():
  rows = np.zeros((3, 2))
  with pytest.raises(ValueError, match=r"k=3 .* got 3 real and 3 generated"):
    precision_recall(rows, rows)
