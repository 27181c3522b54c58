"""Writes and reads trees of arrays with Orbax v1, and detects damage.

This is the only file that imports Orbax. A folder holds one or more trees, by
name. Every write is atomic: Orbax writes to another folder and renames it; in a
bucket it writes in place and adds a mark last. The caller keeps the digests of
the arrays (fingerprint.py), which show later whether the arrays have changed.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from diffdistill.arrays import Params
from diffdistill.system import bucket_faults, buckets, hosts
from diffdistill.system.bucket_faults import BucketError
from diffdistill.system.files import in_bucket, matching
from diffdistill.training.disk_faults import mendable
from diffdistill.training.file_digests import DamagedError
from diffdistill.training.fingerprint import by_name, described, digests
from diffdistill.training.parts import parts
from diffdistill.training.sharding import Layout
from diffdistill.training.silence import silence
from diffdistill.training.state import with_shardings

T = TypeVar("T")

# Orbax writes a file of this name in a bucket, to mark a complete write.
COMMITTED = "commit_success.txt"
# The name of every folder that Orbax has not completed contains this text.
UNFINISHED = ".orbax-checkpoint-tmp"
# Orbax numbers its operations, so two threads must not call it at once.
_ONE_AT_A_TIME = threading.RLock()


@runtime_checkable
class Saving(Protocol):
  """A save that goes on in the background."""

  def result(self) -> Any: ...


def save(folder: epath.Path, trees: Mapping[str, Any]) -> dict[str, Any]:
  """Writes the trees, in place of an old folder, and reads them back.

  Returns:
    The digests of the arrays of the trees.

  Raises:
    ValueError: if the disk does not keep the trees; the message is one line.
  """
  expected = {name: digests(tree) for name, tree in trees.items()}
  try:
    finish(folder, begin(folder, trees))
  except ValueError:
    if hosts.is_first():
      clean_failed(folder.parent)
    raise
  try:
    read_back(folder, expected, shapes_of(trees))
  except DamagedError as error:
    hosts.on_first(lambda: remove(folder))
    raise ValueError(
      f"{error}, although it was saved just now; check that disk, and run the"
      " command again"
    ) from error
  return expected


def begin(folder: epath.Path, trees: Mapping[str, Any]) -> Saving:
  """Begins a write in the background; later changes of the arrays are safe.

  Raises:
    ValueError: if the disk refuses the write; the message is one line.
  """
  silence()

  def act() -> Saving:
    with _ONE_AT_A_TIME:
      return ocp.save_checkpointables_async(
        absolute(folder), dict(trees), overwrite=True
      )

  return mendable(folder, act)


def finish(folder: epath.Path, saving: Saving) -> None:
  """Waits until the write that `begin` began is complete.

  Raises:
    ValueError: if the disk refuses the write; the message is one line.
  """
  mendable(folder, saving.result)


def load(
  folder: epath.Path, name: str, shapes: Any, expected: Any, whole: bool = True
) -> Any:
  """Loads one tree of arrays to the devices.

  Args:
    folder, name: the folder in which the tree is, and its name.
    shapes: the shapes, dtypes and shardings of the loaded arrays.
    expected: the digests of the arrays.
    whole: whether `shapes` has all arrays of the tree, and not only some.

  Raises:
    DamagedError: if the tree differs from what was saved; it names an array.
  """
  context = ocp.Context()
  context.pytree.loading.partial_load = not whole

  def act() -> Any:
    with context:
      return ocp.load(absolute(folder), shapes, checkpointable_name=name)

  tree = _read(folder, act)
  compare(folder, name, by_name(expected), by_name(digests(tree)))
  return tree


def load_weights(
  round_dir: epath.Path,
  folder: epath.Path,
  name: str,
  expected: Any,
  layout: Layout,
) -> Params:
  """Loads one tree of weights of a round onto a mesh.

  Raises:
    ValueError: if the tree is damaged; the message has the remedy.
  """
  try:
    return load(folder, name, shapes_like(expected, layout), expected)
  except DamagedError as error:
    raise refusal(error, round_dir) from error


def read_back(
  folder: epath.Path,
  expected: Mapping[str, Any],
  shapes: Mapping[str, Any] | None = None,
) -> None:
  """Reads every array from the disk, a few at a time.

  A single process reads into the memory of the host, not of its devices. If
  there are several processes, each reads the parts that its devices hold.

  Args:
    folder: the folder in which the trees are.
    expected: the digests of the arrays, by name of tree.
    shapes: the shapes, dtypes and shardings, by name of tree. A single process
      may leave them out, to read them from the disk.

  Raises:
    DamagedError: if an array differs from what was saved; it names the first.
  """
  for name, wanted in expected.items():
    tree = None if shapes is None else shapes[name]
    if tree is None:
      tree = _read(folder, lambda name=name: _on_disk(folder, name))
    if jax.process_count() == 1:
      tree = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), tree)
    actual: dict[str, str] = {}
    for part in parts(tree):
      loaded = _read(
        folder,
        lambda name=name, part=part: ocp.load(
          absolute(folder), part, checkpointable_name=name
        ),
      )
      read = jax.tree.map(lambda leaf: None if leaf is ... else leaf, loaded)
      actual |= by_name(digests(read))
    compare(folder, name, by_name(wanted), actual)


def compare(
  folder: epath.Path,
  name: str,
  expected: Mapping[str, str],
  actual: Mapping[str, str],
) -> None:
  """Compares the digests of one tree with the digests that were saved.

  Raises:
    DamagedError: if they differ; the message names the first array that
      differs.
  """
  wrong = [
    array
    for array in sorted(expected.keys() | actual.keys())
    if expected.get(array) != actual.get(array)
  ]
  if wrong:
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    raise DamagedError(
      f"{folder} is damaged: the array {wrong[0]} of {name}{more} differs from"
      " what was saved"
    )


def is_whole(folder: epath.Path) -> bool:
  """Whether Orbax has finished the write of a folder.

  In a bucket a folder cannot be renamed, so Orbax writes a mark last.
  """
  if in_bucket(folder):
    return (folder / COMMITTED).exists()
  return folder.is_dir()


def clean(folder: epath.Path) -> None:
  """Removes from a folder the unfinished writes of killed processes.

  In a bucket, such writes have no mark, and the next write removes them.
  """
  if in_bucket(folder):
    return
  for pattern in (f"*{UNFINISHED}*", ".*.partial"):
    for path in matching(folder, pattern):
      remove(path)


def clean_failed(folder: epath.Path) -> None:
  """Removes from a folder the write that has just failed.

  Orbax reports the first error while its other threads still write, which makes
  the folder again. So this cleans until nothing has appeared for 0.1 s, but for
  two seconds at most.
  """
  if in_bucket(folder):
    return
  for _ in range(20):
    with contextlib.suppress(OSError):
      clean(folder)
    time.sleep(0.1)
    if not matching(folder, f"*{UNFINISHED}*"):
      return


def remove(path: epath.Path) -> None:
  """Removes a file or a folder, if there is one."""
  if in_bucket(path):
    buckets.remove(path)
  elif path.is_dir():
    path.rmtree(missing_ok=True)
  else:
    path.unlink(missing_ok=True)


def absolute(path: epath.Path) -> epath.Path:
  """Makes a path absolute, for Orbax; a bucket's path is absolute already."""
  return path if path.is_absolute() else path.resolve()


def first_line(error: BaseException) -> str:
  """Returns the class and the first line of the message of an error."""
  lines = str(error).strip().splitlines() or [""]
  return f"{type(error).__name__}: {lines[0][:200]}"


def refusal(error: Exception, round_dir: epath.Path) -> ValueError:
  """Makes the error of damaged data again, with a remedy in its message."""
  return ValueError(
    f"{error}; restore it, or remove {round_dir} to train that round again"
  )


def shapes_like(expected: Any, layout: Layout) -> Any:
  """Returns shapes, dtypes and shardings of weights that have these digests."""
  return with_shardings(jax.tree.map(described, expected), layout)


def shapes_of(tree: Any) -> Any:
  """Returns the shapes, dtypes and shardings of a tree of arrays."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None)
    ),
    tree,
  )


def _on_disk(folder: epath.Path, name: str) -> Any:
  """Returns the shapes and dtypes that Orbax recorded on the disk."""
  return ocp.checkpointables_metadata(absolute(folder)).metadata[name]


def _read(folder: epath.Path, act: Callable[[], T]) -> T:
  """Calls `act` on every process; if it fails on one, all raise an error.

  Raises:
    DamagedError: if any process cannot read its data.
    BucketError: if a bucket does not answer, or refuses.
  """
  reason, result, away = "another process cannot", None, ""
  silence()
  try:
    with _ONE_AT_A_TIME:
      result = act()
  except Exception as error:
    # Orbax and its storage libraries raise many classes of errors for damage.
    failed: Exception | None = error
    reason, away = first_line(error), bucket_faults.fault(error)
  else:
    failed = None
  if not hosts.everywhere(failed is None):
    # If a bucket does not answer, its data is not damaged.
    if not hosts.everywhere(not away):
      away = away or "another process cannot reach a bucket"
      raise BucketError(f"{folder} cannot be read: {away}") from failed
    raise DamagedError(f"{folder} cannot be read ({reason})") from failed
  return cast(T, result)
