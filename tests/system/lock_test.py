"""Tests that one training holds a workdir, and can replace a dead one."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from diffdistill.system import holder, lock
from diffdistill.system.files import read_json, write_json
from diffdistill.tools import carry


@pytest.fixture
def workdir(tmp_path):
  return epath.Path(tmp_path) / "runs" / "one"


@pytest.fixture(autouse=True)
def _seconds_are_short(monkeypatch):
  for name, seconds in (
    ("RENEW_SECONDS", 0.05),
    ("STALE_SECONDS", 0.6),
    ("POLL_SECONDS", 0.02),
    ("WORD_SECONDS", 0.1),
    ("SETTLE_SECONDS", 0.1),
  ):
    monkeypatch.setattr(lock, name, seconds)


@pytest.fixture
def _busy(monkeypatch):
  """Makes STALE_SECONDS long, because holders are slow on a busy machine."""
  monkeypatch.setattr(lock, "STALE_SECONDS", 600)


def write_lock(workdir, **fields):
  """Writes the lock of a process on another host, which nobody renews."""
  holder = {"host": "other", "boot": "b", "process": 123, "started": "5"}
  workdir.mkdir(parents=True, exist_ok=True)
  write_json(workdir / "lock.json", {**holder, "nonce": "n", **fields})


def here(process):
  """Returns the fields of a lock that identify a process of this host."""
  return {**holder.identity(), "process": process.pid, "started": "5"}


def test_a_free_workdir_is_held_and_released_silently(workdir):
  said = []
  with lock.held(workdir, said.append):
    holder = read_json(workdir / "lock.json")
    assert holder["process"] == os.getpid()
    assert holder["host"] == socket.gethostname()
  assert not (workdir / "lock.json").exists()
  assert said == []


@pytest.mark.usefixtures("_busy")
def test_another_training_is_refused_while_a_lock_is_renewed(workdir):
  said = []
  with (
    lock.held(workdir, said.append),
    pytest.raises(
      ValueError, match=r"one is in use: process \d+ on \S+ trains"
    ),
    lock.held(workdir, said.append),
  ):
    pass
  (line,) = said
  assert line == (
    f"waits up to 600 s: {workdir} is held by process {os.getpid()} on"
    f" {socket.gethostname()}"
  )


@pytest.mark.usefixtures("_busy")
def test_a_refused_training_does_not_change_the_lock(workdir):
  with lock.held(workdir, print):
    with pytest.raises(ValueError, match="in use"), lock.held(workdir, print):
      pass
    assert read_json(workdir / "lock.json")["process"] == os.getpid()


def test_a_lock_that_nobody_renews_is_taken_over(workdir):
  write_lock(workdir)
  said, start = [], time.monotonic()
  with lock.held(workdir, said.append):
    assert time.monotonic() - start >= 0.6
    assert read_json(workdir / "lock.json")["process"] == os.getpid()
  assert len(said) == 1


def test_the_lock_of_a_dead_process_is_taken_over_at_once(workdir):
  process = subprocess.Popen(
    [sys.executable, "-c", "import time; time.sleep(60)"]
  )
  write_lock(
    workdir, **{**here(process), "started": holder._started(process.pid)}
  )
  seen = lock.Lock(workdir, print)
  assert not seen.attempt(0.0)
  process.send_signal(signal.SIGKILL)
  # Wait until the process is a zombie, which has ended but whose status nobody
  # has read.
  while holder._started(process.pid):
    time.sleep(0.01)
  said = []
  with lock.held(workdir, said.append):
    assert said == []
  process.wait()
  assert holder._started(process.pid) == ""


@pytest.mark.parametrize("field", ["host", "boot"])
def test_the_lock_of_a_process_on_another_host_is_waited_for(workdir, field):
  process = subprocess.Popen([sys.executable, "-c", ""])
  process.wait()
  write_lock(workdir, **{**here(process), field: "another"})
  assert not lock.Lock(workdir, print).attempt(0.0)


def test_the_lock_of_a_reused_process_number_is_taken_over_at_once(workdir):
  write_lock(
    workdir, **{**holder.identity(), "process": os.getpid(), "started": "1"}
  )
  assert lock.Lock(workdir, print).attempt(0.0)


def test_a_damaged_lock_is_taken_over_after_a_wait(workdir):
  workdir.mkdir(parents=True)
  (workdir / "lock.json").write_text("{")
  said = []
  with lock.held(workdir, said.append):
    pass
  assert "held by an unknown process (its lock is damaged)" in said[0]


def test_a_holder_whose_lock_was_taken_over_ends(workdir):
  ended = []
  mine = lock.Lock(workdir, print, ended.append)
  assert mine.attempt(0.0)
  write_lock(workdir)
  mine._thread.join()
  (line,) = ended
  assert line.startswith(
    f"{workdir} was taken over by process 123 on other, bec"
  )
  mine.release()
  # The release must leave the lock of the new holder as it is.
  assert read_json(workdir / "lock.json")["nonce"] == "n"


@pytest.mark.parametrize("local", [True, False])
def test_only_one_of_several_trainings_takes_a_lock_over(
  workdir, monkeypatch, local
):
  if not local:
    # Without flock, as in a bucket, other processes can write between a
    # process's look at the lock and its own write.
    monkeypatch.setattr(lock.fcntl, "flock", _refuse)
    # This must be longer than the time between a look and a write.
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 1.5)
  write_lock(workdir)
  locks = [lock.Lock(workdir, print, print) for _ in range(4)]
  outcomes = []

  def wait(mine):
    try:
      while not mine.attempt(0.1):
        pass
      outcomes.append("taken")
    except ValueError as error:
      outcomes.append(str(error))

  threads = [threading.Thread(target=wait, args=(mine,)) for mine in locks]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert outcomes.count("taken") == 1
  assert sum("is in use" in outcome for outcome in outcomes) == 3
  for mine in locks:
    mine.release()


def _refuse(*_):
  raise OSError(errno.EOPNOTSUPP, "no locks here")


def test_a_lock_survives_a_disk_that_fails_for_a_while(workdir, monkeypatch):
  said, ended = [], []
  mine = lock.Lock(workdir, said.append, ended.append)
  assert mine.attempt(0.0)

  def fail(*_):
    raise OSError("503 backend error")

  with monkeypatch.context() as patch:
    patch.setattr(lock, "write_json", fail)
    while not said:
      time.sleep(0.02)
  before = mine.look()
  while mine.look() == before:
    time.sleep(0.02)
  mine.release()
  assert ended == []
  (line,) = said
  assert "lock.json has not been renewed for 0.6 s (OSError: 503" in line


def test_a_full_disk_still_shows_that_the_holder_is_alive(workdir, monkeypatch):
  mine = lock.Lock(workdir, print, print)
  assert mine.attempt(0.0)

  def fail(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(lock, "write_json", fail)
  other = lock.Lock(workdir, print)
  with pytest.raises(ValueError, match="is in use"):
    other.attempt(5.0)
  mine.release()


@pytest.mark.usefixtures("_busy")
def test_a_workdir_is_not_carried_during_a_training(finished_run, tmp_path):
  workdir = epath.Path(finished_run)
  with (
    lock.held(workdir, print),
    pytest.raises(ValueError, match="is in use: process"),
  ):
    carry.carry(workdir, epath.Path(tmp_path) / "small")
  assert not (tmp_path / "small").exists()


def test_a_training_that_begins_during_a_command_is_noticed(workdir):
  with (
    pytest.raises(ValueError, match="a training began in"),
    lock.idle(workdir, print),
  ):
    write_lock(workdir)


def test_a_workdir_can_be_read_during_a_training(
  finished_run, run_cli, tmp_path
):
  out = tmp_path / "sheet.png"
  with lock.held(epath.Path(finished_run), print):
    assert (
      run_cli(
        "sample", f"--workdir={finished_run}", "--num_images=4", f"--out={out}"
      )
      == 0
    )
    page = tmp_path / "page.json"
    assert run_cli("report", f"--workdir={finished_run}", f"--out={page}") == 0
  assert json.loads(page.read_text())


def test_two_trainings_at_once_are_refused_in_one_line(
  refuse, finished_run, config_file
):
  with lock.held(epath.Path(finished_run), print):
    arguments = (f"--config={config_file}", f"--workdir={finished_run}")
    line = refuse(1, "train", *arguments)
  assert line.endswith("wait until it ends, or pass another --workdir")
