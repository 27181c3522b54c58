"""Tests that a run of one process saves and leaves when it is told to.

These tests choose the boundary between updates at which a run must leave.
multihost_test.py sends real signals at random moments, also to several
processes.
"""

import os
import signal
import threading

import pytest
from etils import epath

from diffdistill.training import checkpoint
from diffdistill.training.preemption import PreemptedError, Preemption
from diffdistill.training.running import steps_in

UPDATES = 18


class Told(Preemption):
  """A fake that tells a run to leave at one boundary, which counts from 0."""

  def __init__(self, boundary=None):
    super().__init__()
    self.boundary = boundary
    self.asked = 0

  def agreed(self, mesh, *, lag=0):
    self.asked += 1
    return self.asked - 1 == self.boundary


@pytest.fixture(scope="module")
def run(tiny_config, run_of):
  return run_of(tiny_config)


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
  workdir, never = tmp_path_factory.mktemp("finished"), Told()
  run.train(workdir, preemption=never)
  # The run asks whether to leave once before each update of the four rounds.
  assert never.asked == 4 * UPDATES
  return workdir


def leave(run, workdir, boundary, **arguments):
  """Runs until a boundary at which the run must leave; returns its message."""
  with pytest.raises(PreemptedError) as error:
    run.train(workdir, preemption=Told(boundary), **arguments)
  assert error.value.status == 75
  assert "\n" not in str(error.value)
  return str(error.value)


def saved(workdir, name):
  return sorted(steps_in(epath.Path(workdir) / name / "checkpoints"))


def test_a_run_that_leaves_saves_and_continues_from_there(
  run, tmp_path, capsys
):
  assert leave(run, tmp_path, 7) == (
    "asked to leave teacher after update 7; the same command goes on from there"
  )
  # The run saved update 5 at the cadence, and update 7 because it left.
  assert saved(tmp_path, "teacher") == [5, 7]
  capsys.readouterr()
  leave(run, tmp_path, 3)
  assert "teacher: goes on from update 7\n" in capsys.readouterr().err
  # The older checkpoints are still there, because the next start must first
  # read the newest one.
  assert saved(tmp_path, "teacher") == [5, 7, 10]


def test_a_state_that_is_saved_is_not_saved_again(run, tmp_path):
  assert "after update 0;" in leave(run, tmp_path, 0)
  assert saved(tmp_path, "teacher") == []
  leave(run, tmp_path, 6)
  before = (tmp_path / "teacher" / "checkpoints" / "6").stat().st_mtime_ns
  assert "after update 6;" in leave(run, tmp_path, 0)
  assert saved(tmp_path, "teacher") == [5, 6]
  after = (tmp_path / "teacher" / "checkpoints" / "6").stat().st_mtime_ns
  assert before == after


@pytest.mark.slow
def test_a_run_that_leaves_many_times_makes_the_same_weights(
  run, finished, tmp_path, records_of
):
  # Tell the run to leave in a round, at a checkpoint, at once, and at and after
  # the end of a round.
  for boundary in (4, 6, 0, 5, 18, 17, 1, 16):
    leave(run, tmp_path, boundary)
  run.train(tmp_path)
  run.assert_same_weights(tmp_path, finished)
  # A record without a student's loss tells seconds, which must not be negative.
  lives = [r for r in records_of(tmp_path) if "student/loss" not in r]
  assert all(r["seconds"] >= 0 for r in lives)


def test_a_stage_of_pairs_leaves_between_two_shards(
  pairs_config, run_of, tmp_path
):
  run = run_of(pairs_config)
  # The run asks at six boundaries of the teacher, and then once after each
  # shard.
  message = leave(run, tmp_path, 6 + 2)
  assert message.startswith("asked to leave pairs after a shard;")
  shards = tmp_path / "pairs" / "pairs"
  assert len(list(shards.glob("*.npz"))) == 3
  assert not checkpoint.has_final(epath.Path(tmp_path) / "pairs")
  assert leave(run, tmp_path, 0).startswith("asked to leave pairs")
  assert len(list(shards.glob("*.npz"))) == 4


def test_train_exits_with_status_75_when_told_to_leave(
  monkeypatch, refuse, config_file, tmp_path
):
  monkeypatch.setattr(Preemption, "agreed", lambda *_, **__: True)
  before = signal.getsignal(signal.SIGTERM)
  line = refuse(75, "train", f"--config={config_file}", f"--workdir={tmp_path}")
  assert line.startswith("asked to leave classifier after update 0;")
  assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_is_noted_and_the_old_handler_restored(mesh_of):
  noted = []
  before = signal.signal(signal.SIGTERM, lambda *_: noted.append(1))
  try:
    with Preemption() as preemption:
      assert not preemption.agreed(mesh_of(1))
      # A second signal must change nothing.
      for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.agreed(mesh_of(1))
      assert preemption.agreed(mesh_of(1))
      assert not noted
    os.kill(os.getpid(), signal.SIGTERM)
    assert noted
  finally:
    signal.signal(signal.SIGTERM, before)


def test_a_run_in_another_thread_listens_to_no_signals(mesh_of):
  before, agreed = signal.getsignal(signal.SIGTERM), []

  def life():
    with Preemption() as preemption:
      agreed.append(preemption.agreed(mesh_of(1)))

  thread = threading.Thread(target=life)
  thread.start()
  thread.join()
  assert agreed == [False]
  assert signal.getsignal(signal.SIGTERM) is before
