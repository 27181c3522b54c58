"""Saves and restores the checkpoints of an unfinished round."""

import concurrent.futures
import dataclasses
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging
from etils import epath

from diffdistill.system import hosts
from diffdistill.system.bucket_faults import BucketError
from diffdistill.system.files import in_bucket, matching, read_json, write_json
from diffdistill.training import stored
from diffdistill.training.disk_faults import mendable
from diffdistill.training.file_digests import (
  DamagedError,
  check_files,
  files_of,
)
from diffdistill.training.fingerprint import by_name, digests
from diffdistill.training.state import TrainState

STATE = "state"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pending:
  """A checkpoint that is being written.

  Args:
    step: how many updates are done.
    saving: the write that goes on in the background.
    shapes: the shapes, dtypes and shardings with which the checkpoint is read
      back.
    expected: the digests of its arrays, by name.
  """

  step: int
  saving: stored.Saving
  shapes: Any
  expected: Mapping[str, str]


class Checkpoints:
  """The checkpoints of one round; it keeps the newest undamaged ones.

  A checkpoint is saved in the background and then read back. Only after that
  are older ones removed. A single process also reads back in the background.
  Several processes read back together, just before they save the next
  checkpoint. A process does not read back its last checkpoint; the next process
  reads it.

  Args:
    round_dir: the round's directory.
    keep: how many checkpoints to keep. With two or more, the round can go on
      even if the newest is damaged later.
    flush: writes what must be on the disk before a checkpoint.
  """

  def __init__(
    self,
    round_dir: epath.Path,
    keep: int = 2,
    flush: Callable[[], None] = lambda: None,
  ):
    self._folder = round_dir / "checkpoints"
    self._keep = keep
    self._flush = flush
    self._sound: set[int] = set()
    self._pending: Pending | None = None
    self._ended: concurrent.futures.Future[None] | None = None
    self._closing = threading.Event()

    def clean() -> None:
      self._folder.mkdir(parents=True, exist_ok=True)
      for name in ("", "checkpoints", "best"):
        stored.clean(round_dir / name)

    mendable(self._folder, lambda: hosts.on_first(clean))

  def save(self, state: TrainState, step: int) -> None:
    """Saves in the background, after the previous save has ended.

    Raises:
      ValueError: if the disk refused one of the saves; the message is one line.
    """
    self._settle()
    self.prepare()
    tree = _as_tree(state)
    expected = by_name(digests(tree))

    def record() -> None:
      write_json(self._record(step), {STATE: expected})

    # Write the digests of the arrays first, so that every complete checkpoint
    # has them.
    mendable(self._path(step), lambda: hosts.on_first(record))
    pending = Pending(
      step=step,
      saving=stored.begin(self._path(step), {STATE: tree}),
      shapes=stored.shapes_of(tree),
      expected=expected,
    )
    self._pending = pending
    if jax.process_count() == 1:
      self._ended = concurrent.futures.Future()
      threading.Thread(
        target=self._in_background, args=(pending, self._ended), daemon=True
      ).start()

  def prepare(self) -> None:
    """Refuses to write into a workdir that has vanished; writes the records.

    Raises:
      ValueError: if the workdir has vanished.
    """

    def check() -> None:
      if not in_bucket(self._folder) and not self._folder.exists():
        raise ValueError(
          f"{self._folder} is gone; bring its disk back, and run the command"
          " again: it goes on from what was saved there"
        )

    hosts.on_first(check)
    self._flush()

  def restore(self, abstract: TrainState) -> TrainState | None:
    """Restores the newest undamaged state; returns None without checkpoints.

    Args:
      abstract: the shapes, dtypes and shardings of the restored state.

    Raises:
      ValueError: if there are checkpoints and all of them are damaged.
    """
    steps = hosts.on_first(lambda: steps_in(self._folder))
    for step in steps:
      tree: Any = None
      try:
        expected = hosts.on_first(
          lambda step=step: digests_of(self._folder, step)
        )
        tree = stored.load(
          self._path(step), STATE, _as_tree(abstract), expected
        )
      except BucketError:
        raise
      except ValueError as error:
        logging.warning("skipped a checkpoint: %s", error)
      if hosts.everywhere(tree is not None):
        self._sound.add(step)
        return TrainState(**tree)
    if steps:
      raise ValueError(
        f"none of the checkpoints {steps} in {self._folder} is sound; restore"
        " one of them, or remove that folder to start the round anew"
      )
    return None

  def close(self) -> None:
    """Waits for the last save to end, but does not read it back.

    Raises:
      ValueError: if the disk refused the save; the message is one line.
    """
    self._closing.set()
    self._settle()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind, error, traceback) -> None:
    """Waits for the last save, also after an error.

    It does not wait after another process was lost: the save would never end.
    """
    lost = isinstance(error, jax.errors.JaxRuntimeError)
    if not (lost and jax.process_count() > 1):
      self.close()

  def _settle(self) -> None:
    """Waits until nothing is being saved."""
    pending, self._pending = self._pending, None
    ended, self._ended = self._ended, None
    if ended is not None:
      ended.result()
    elif pending is not None:
      self._finish(pending)

  def _in_background(
    self, pending: Pending, ended: concurrent.futures.Future[None]
  ) -> None:
    try:
      self._finish(pending)
    except BaseException as error:
      # `_settle` raises this error in the main thread.
      ended.set_exception(error)
    else:
      ended.set_result(None)

  def _finish(self, pending: Pending) -> None:
    """Waits for the write, reads it back, and removes older checkpoints."""
    step = pending.step
    path = self._path(step)
    try:
      stored.finish(path, pending.saving)
    except ValueError:
      # Each process handles this error alone, because other processes may have
      # met no error.
      if hosts.is_first():
        self._remove(step)
        stored.clean_failed(self._folder)
      raise
    if self._closing.is_set():
      return
    expected = {STATE: pending.expected}
    try:
      stored.read_back(path, expected, {STATE: pending.shapes})
    except DamagedError as error:
      logging.warning(
        "%s, although it was saved just now; it is removed, and those before"
        " it are kept: check that disk",
        error,
      )
      hosts.on_first(lambda: self._remove(step))
      return
    self._sound.add(step)

    def tidy_up() -> None:
      if jax.process_count() == 1:
        # Only a single process makes digests of files, since several processes
        # would have to wait for them.
        record = {**expected, "files": files_of(path)}
        write_json(self._record(step), record)
      self._remove_old()

    hosts.on_first(tidy_up)

  def _remove_old(self) -> None:
    """Removes all checkpoints that are older than the newest undamaged ones."""
    kept = sorted(self._sound)[-self._keep :]
    self._sound.intersection_update(kept)
    for path in matching(self._folder, "*"):
      name = path.name.removesuffix(".json")
      if name.isdigit() and int(name) < kept[-1] and int(name) not in kept:
        stored.remove(path)

  def _remove(self, step: int) -> None:
    stored.remove(self._path(step))
    stored.remove(self._record(step))

  def _path(self, step: int) -> epath.Path:
    return self._folder / str(step)

  def _record(self, step: int) -> epath.Path:
    return self._folder / f"{step}.json"


def steps_in(folder: epath.Path) -> list[int]:
  """Lists the update numbers of all complete checkpoints, the newest first."""
  paths = (path for path in matching(folder, "*") if path.name.isdigit())
  return sorted(
    (int(p.name) for p in paths if stored.is_whole(p)), reverse=True
  )


def newest_sound(folder: epath.Path) -> list[epath.Path]:
  """Finds the folder and the JSON file of the newest undamaged checkpoint.

  Raises:
    ValueError: if there are checkpoints and all of them are damaged.
  """
  steps = steps_in(folder)
  for step in steps:
    path = folder / str(step)
    try:
      stored.read_back(path, {STATE: digests_of(folder, step)})
      return [path, folder / f"{step}.json"]
    except ValueError as error:
      logging.warning("skipped a checkpoint: %s", error)
  if steps:
    raise ValueError(
      f"none of the checkpoints {steps} in {folder} is sound; restore one of"
      " them, or remove that folder to start the round anew"
    )
  return []


def digests_of(folder: epath.Path, step: int) -> dict[str, str]:
  """Reads the digests of a checkpoint's arrays, after checking its files.

  Raises:
    ValueError: if a file differs from what was saved.
  """
  path, record = folder / str(step), folder / f"{step}.json"
  if not record.exists():
    raise ValueError(f"{path} has no {record.name} beside it")
  fields = read_json(record)
  # The last checkpoint of a process has no digests of files, because the
  # process ends before it reads the checkpoint back.
  check_files(path, fields.get("files", {}))
  return fields[STATE]


def _as_tree(state: TrainState) -> Any:
  """Turns the state into a dict, so that the format on disk names no class."""
  return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
