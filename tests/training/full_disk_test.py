"""Tests that a full disk gives a one-line error and damages no file."""

import os
import pathlib
import shutil
import subprocess
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from diffdistill.training import checkpoint, stored
from diffdistill.training.best import best_of, save_best
from diffdistill.training.running import Checkpoints, steps_in
from diffdistill.training.sharding import Layout
from diffdistill.training.state import TrainState

VALUES = 100_000  # 0.4 MB of random numbers, which cannot be compressed


def weights(seed, count=VALUES):
  return {"w": jax.random.normal(jax.random.key(seed), (count,))}


def state(step):
  params = {"student": weights(step)}
  return TrainState(
    step=jnp.full((), step, jnp.int32), params=params, opt_state={}, averages={}
  )


ABSTRACT = jax.eval_shape(lambda: state(0))


def on_one_device(tree):
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    tree,
  )


@pytest.fixture
def disk(tmp_path):
  """Mounts a small disk of 2 MB in memory."""
  place = tmp_path / "disk"
  place.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place]
  if os.geteuid() or subprocess.run(mount, check=False).returncode:
    pytest.skip("only root can mount a small disk")
  yield place
  subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def round_dir(disk):
  return epath.Path(disk) / "run" / "teacher"


def fill(disk, room=0):
  """Fills a disk, but leaves `room` bytes free."""
  free = shutil.disk_usage(disk).free
  (disk / "fill").write_bytes(b"0" * (free - room))


def unfinished(disk):
  """Lists the files on a disk that are incomplete or unexpected."""
  return [p for p in disk.rglob("*") if "tmp" in p.name or "partial" in p.name]


def restored(round_dir):
  with Checkpoints(round_dir) as checkpoints:
    return checkpoints.restore(on_one_device(ABSTRACT))


def save(checkpoints, *steps):
  """Saves as training does; raises an error if the disk is full."""
  with checkpoints:
    for step in steps:
      checkpoints.save(state(step), step)


@pytest.mark.parametrize("room", [0, 8_000, 200_000])
def test_a_run_continues_after_its_full_disk_has_room_again(
  disk, round_dir, room, capfd
):
  save(Checkpoints(round_dir), 1)
  fill(disk, room)
  checkpoints = Checkpoints(round_dir)
  with pytest.raises(
    ValueError,
    match=r"checkpoints/2 cannot be written: the disk is full; free some space",
  ) as refused:
    save(checkpoints, 2)
  assert "\n" not in str(refused.value)
  # The traceback of Orbax must not be printed.
  assert "Traceback" not in capfd.readouterr().err
  assert unfinished(disk) == []
  assert steps_in(round_dir / "checkpoints") == [1]
  (disk / "fill").unlink()
  assert int(restored(round_dir).step) == 1
  save(Checkpoints(round_dir), 2)
  np.testing.assert_array_equal(
    restored(round_dir).params["student"]["w"], weights(2)["w"]
  )


def test_what_a_failed_write_adds_after_its_error_is_removed_too(
  tmp_path, monkeypatch
):
  folder = epath.Path(tmp_path) / "checkpoints"
  late = folder / f"2{stored.UNFINISHED}" / "array"

  finish = stored.finish

  def fails(path, saving):
    finish(path, saving)
    threading.Timer(0.05, lambda: late.mkdir(parents=True)).start()
    raise ValueError("the disk is full")

  checkpoints = Checkpoints(epath.Path(tmp_path))
  monkeypatch.setattr(stored, "finish", fails)
  with pytest.raises(ValueError, match="the disk is full"):
    save(checkpoints, 2)
  assert steps_in(folder) == unfinished(tmp_path) == []


@pytest.mark.parametrize("room", [0, 200_000])
def test_a_full_disk_refuses_results_and_best_weights(
  disk, round_dir, room, mesh_of
):
  save(Checkpoints(round_dir), 1)
  save_best(round_dir, weights(1, 8), 1, 0.5)
  fill(disk, room)
  with pytest.raises(
    ValueError, match="final cannot be written: the disk is f"
  ):
    checkpoint.save_final(round_dir, {"student": weights(3)})
  with pytest.raises(ValueError, match=r"best/\S+ cannot be written: the disk"):
    save_best(round_dir, weights(2), 2, 0.25)
  assert unfinished(disk) == []
  assert not checkpoint.has_final(round_dir)
  assert best_of(round_dir).step == 1
  (disk / "fill").unlink()
  checkpoint.save_final(round_dir, {"student": weights(3)})
  assert checkpoint.is_done(round_dir, Layout(mesh=mesh_of(1)))


def test_a_disk_that_became_read_only_is_refused(disk, round_dir):
  save(Checkpoints(round_dir), 1)
  subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
  with pytest.raises(ValueError, match="written: the disk is read-only; make"):
    save(Checkpoints(round_dir), 2)
  with pytest.raises(ValueError, match="written: the disk is read-only; make"):
    checkpoint.save_final(round_dir, {"student": weights(3)})


def test_a_workdir_that_vanished_is_not_made_again(tmp_path):
  round_dir = epath.Path(tmp_path) / "run" / "teacher"
  checkpoints = Checkpoints(round_dir)
  shutil.rmtree(tmp_path / "run")
  with pytest.raises(ValueError, match="checkpoints is gone; bring its disk"):
    checkpoints.save(state(1), 1)
  with pytest.raises(ValueError, match="checkpoints is gone; bring its disk"):
    checkpoints.prepare()
  assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
  round_dir = epath.Path(tmp_path) / "run" / "teacher"
  pathlib.Path(tmp_path / "run").write_text("")
  with pytest.raises(ValueError, match="a file is where a folder should be"):
    Checkpoints(round_dir)
  with pytest.raises(ValueError, match="a file is where a folder should be"):
    checkpoint.save_final(round_dir, {"student": weights(3, 8)})
