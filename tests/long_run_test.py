"""Tests that memory and files of a long run do not grow; see long_run.py."""

import pytest

from tests import long_run


def rows(**per_update):
  """Makes 200 samples of a run of 20,000 updates that grows by these numbers.

  The numbers are the growth per update.
  """
  first = {"memory_mb": 500.0, "open_files": 20, "threads": 30, "disk_files": 9}
  return [
    {"update": n} | {k: v + n * per_update.get(k, 0) for k, v in first.items()}
    for n in range(100, 20_000, 100)
  ]


def test_a_growing_quantity_is_named():
  assert long_run.grown(rows()) == []
  # In this run a kilobyte per update leaks, and a thread per checkpoint.
  leak = rows(memory_mb=1 / 1024, threads=1 / 100)
  assert long_run.grown(leak) == ["memory_mb", "threads"]


def test_a_quantity_that_grows_only_at_first_is_not_named():
  warm = rows()
  for row in warm:
    row["memory_mb"] += min(row["update"], 5000) / 100
  assert long_run.grown(warm) == []


@pytest.mark.long
def test_twenty_thousand_updates_do_not_grow():
  assert long_run.grown(long_run.train(20_000)) == []
