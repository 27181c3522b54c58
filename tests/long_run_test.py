"""A run of 20,000 updates stays as large as it is; long_run.py says how."""

import pytest

from tests import long_run


def rows(**per_update):
  """200 samples of a run of 20,000 updates that grows so much an update."""
  first = {"memory_mb": 500.0, "open_files": 20, "threads": 30, "disk_files": 9}
  return [
    {"update": n} | {k: v + n * per_update.get(k, 0) for k, v in first.items()}
    for n in range(100, 20_000, 100)
  ]


def test_what_grows_is_named():
  assert long_run.grown(rows()) == []
  # A kilobyte an update; a thread for each checkpoint.
  leak = rows(memory_mb=1 / 1024, threads=1 / 100)
  assert long_run.grown(leak) == ["memory_mb", "threads"]


def test_what_has_grown_at_first_is_not():
  warm = rows()
  for row in warm:
    row["memory_mb"] += min(row["update"], 5000) / 100
  assert long_run.grown(warm) == []


@pytest.mark.long
def test_twenty_thousand_updates_leave_nothing_behind():
  assert long_run.grown(long_run.train(20_000)) == []
