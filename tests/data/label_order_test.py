"""Tests that generated labels have the class frequencies of the data."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from diffdistill.data.label_order import labels_of

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)


@hypothesis.settings(deadline=None)
@hypothesis.given(COUNTS)
def test_every_prefix_has_each_class_within_one_of_its_share(counts):
  total = sum(counts)
  labels = labels_of(counts, 0, 2 * total)
  seen = np.cumsum(labels[:, None] == np.arange(len(counts)), axis=0)
  share = np.arange(1, 2 * total + 1)[:, None] * np.array(counts) / total
  assert np.abs(seen - share).max() < 1
  np.testing.assert_array_equal(seen[total - 1], counts)


@pytest.mark.parametrize("counts", [(900, *[1] * 100), (1, 9), (732, 1300, 5)])
def test_rare_classes_do_not_come_all_at_once(counts):
  total = sum(counts)
  labels = labels_of(counts, 0, total)
  seen = np.cumsum(labels[:, None] == np.arange(len(counts)), axis=0)
  share = np.arange(1, total + 1)[:, None] * np.array(counts) / total
  assert np.abs(seen - share).max() < 1


@pytest.mark.parametrize("size", [1, 7, 5000])
def test_classes_of_equal_size_take_turns(size):
  np.testing.assert_array_equal(
    labels_of((size,) * 10, 3, 50), np.arange(3, 53) % 10
  )


def test_a_class_without_images_gets_no_label():
  labels = labels_of((0, 3, 3), 0, 60)
  assert set(labels.tolist()) == {1, 2}
  assert labels.dtype == np.int32


@hypothesis.settings(deadline=None)
@hypothesis.given(COUNTS, st.integers(0, 90), st.integers(0, 60))
def test_a_label_depends_on_its_number_alone(counts, first, count):
  whole = labels_of(counts, 0, 160)
  np.testing.assert_array_equal(
    labels_of(counts, first, count), whole[first : first + count], strict=True
  )


@pytest.mark.parametrize("counts", [(), (0, 0), (3, -1)])
def test_wrong_class_counts_are_refused(counts):
  with pytest.raises(ValueError, match="class counts are"):
    labels_of(counts, 0, 1)
